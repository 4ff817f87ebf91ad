// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The loop around `top`: asks a server for its metrics once a second.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pegaflow_cache::server::top::{Look, screen};

const PATIENCE: Duration = Duration::from_secs(5);
/// Home, and clear what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Shows a screen every `every`, `count` of them; 0 for ever.
///
/// # Errors
/// A sentence for the user.
pub(crate) fn run(
    address: SocketAddr,
    token: Option<&str>,
    every: Duration,
    count: u64,
) -> Result<(), String> {
    let mut before = (look(address, token)?, now());
    let mut shown = 0;
    while count == 0 || shown < count {
        std::thread::sleep(every);
        let next = (look(address, token)?, now());
        let seconds = next.1.duration_since(before.1).as_secs_f64();
        let clear = if count == 1 { "" } else { CLEAR };
        let text = screen(&before.0, &next.0, seconds);
        let mut out = std::io::stdout().lock();
        let written = write!(out, "{clear}{address}\n\n{text}").and_then(|()| out.flush());
        if written.is_err() {
            return Ok(());
        }
        (before, shown) = (next, shown + 1);
    }
    Ok(())
}

fn look(address: SocketAddr, token: Option<&str>) -> Result<Look, String> {
    let text = get(address, token).map_err(|error| {
        format!("cannot ask {address}: {error}; give the server's `http` address with --http")
    })?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(Look::parse(body)),
        Some((head, _)) if head.contains(" 401 ") => {
            Err("the server wants a token; give its file with --token-file".to_owned())
        }
        _ => Err(format!(
            "{address} does not answer like a server of PegaFlow"
        )),
    }
}

fn get(address: SocketAddr, token: Option<&str>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n"));
    let token = token.unwrap_or_default();
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nhost: {address}\r\n{token}connection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[expect(clippy::disallowed_methods, reason = "the binary is a shell")]
fn now() -> Instant {
    Instant::now()
}
