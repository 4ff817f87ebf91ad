// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node behind sockets: gRPC on a Unix socket and perhaps TCP, and the session socket.

use std::future::Future;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::grpc::Service;
use super::proto::node_server::NodeServer;
use super::{Access, FRAME_BYTES_MAX, session_socket};
use crate::error::{Error, Result};
use crate::node::Node;

/// Longest time that one gRPC call may take on the server.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls of one gRPC connection at a time.
const CALLS_MAX: u32 = 64;

/// Sockets that are bound already, so that their owner decides about paths, modes and ports.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC, mode 0600.
    pub grpc: UnixListener,
    /// The session socket: the same path and `.pool`, mode 0600.
    pub session: UnixListener,
    /// gRPC for others.
    pub tcp: Option<TcpListener>,
}

/// Serves the node until `shutdown` is done; then tells the clients, ends what runs, and returns.
///
/// # Errors
/// [`Error::Refused`] for a TCP address that nothing guards; [`Error::Unavailable`] if a listener fails.
pub async fn serve(
    node: Arc<Node>,
    listeners: Listeners,
    access: Access,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let (stop, stopped) = watch::channel(false);
    let local = Service::new(node.clone(), None);
    let grpc = UnixListenerStream::new(unix(listeners.grpc)?);
    let session = unix(listeners.session)?;
    let mut services = vec![local.clone()];
    let tcp = match listeners.tcp {
        Some(listener) => {
            let remote = Service::new(node.clone(), Some(access.clone()));
            services.push(remote.clone());
            Some((tcp(listener, &access)?, remote_builder(&access)?, remote))
        }
        None => None,
    };
    let on_stop = || {
        let mut stopped = stopped.clone();
        async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        }
    };
    let local = router(Server::builder(), local).serve_with_incoming_shutdown(grpc, on_stop());
    let remote = async {
        match tcp {
            Some((incoming, builder, service)) => {
                let router = router(builder, service);
                router
                    .serve_with_incoming_shutdown(incoming, on_stop())
                    .await
            }
            None => Ok(()),
        }
    };
    let frames = session_socket::serve(node.clone(), session, stopped.clone());
    let idle = end_idle(services, on_stop());
    let shutdown = async {
        shutdown.await;
        node.announce_stop();
        // Lets the announcement reach its readers before the connections end.
        tokio::time::sleep(Duration::from_millis(20)).await;
        stop.send_replace(true);
    };
    let (local, remote, (), (), ()) = tokio::join!(local, remote, frames, idle, shutdown);
    local.and(remote).map_err(Error::unavailable)
}

/// Ends sessions that nobody uses; at the stop, all.
async fn end_idle(services: Vec<Service>, stopped: impl Future<Output = ()>) {
    let look = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            services.iter().for_each(Service::end_idle);
        }
    };
    tokio::select! {
        () = look => {}
        () = stopped => {}
    }
    // A stream of events never ends by itself, and would hold up the listener's end.
    services.iter().for_each(Service::end_all);
}

/// What the TCP listener is served with.
fn remote_builder(access: &Access) -> Result<Server> {
    match access.tls() {
        Some(tls) => Server::builder().tls_config(tls.config()),
        None => Ok(Server::builder()),
    }
    .map_err(Error::unavailable)
}

fn router(builder: Server, service: Service) -> Router {
    let limit = FRAME_BYTES_MAX as usize;
    let service = NodeServer::new(service)
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    builder
        .timeout(CALL_TIMEOUT)
        .concurrency_limit_per_connection(CALLS_MAX as usize)
        .max_concurrent_streams(CALLS_MAX)
        .initial_stream_window_size(FRAME_BYTES_MAX)
        .initial_connection_window_size(2 * FRAME_BYTES_MAX)
        .max_frame_size(1 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(service)
}

fn unix(listener: UnixListener) -> Result<tokio::net::UnixListener> {
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixListener::from_std(listener));
    listener.map_err(Error::os("listen on", "the Unix socket".as_ref()))
}

fn tcp(listener: TcpListener, access: &Access) -> Result<TcpListenerStream> {
    let fail = || Error::os("listen on", "the TCP port".as_ref());
    access.check_address(listener.local_addr().map_err(fail())?)?;
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::TcpListener::from_std(listener));
    listener.map(TcpListenerStream::new).map_err(fail())
}
