// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Passing open files over a Unix socket: how a client gets at the pools.
//!
//! Files are passed, not paths: a client in another container or without the right to the pool's
//! folder still maps the right memory, and a memfd has no path at all.
//!
//! Invariant: descriptors travel with the first byte of one header, so a reader that asks for
//! the header gets exactly the descriptors that belong to it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The most files in one hand-over: two for each of 64 pools, and the tickets.
pub const FILES_MAX: usize = 129;

/// Sends the start of `bytes` with `files` attached; says how many bytes went.
///
/// # Errors
/// `InvalidInput` for more than [`FILES_MAX`] files; any error of the socket.
pub async fn send(
    stream: &UnixStream,
    bytes: &[u8],
    files: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    if files.len() > FILES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let parts = [IoSlice::new(bytes)];
            Ok(sendmsg(
                stream,
                &parts,
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )?)
        })
        .await
}

/// Reads exactly `bytes` and collects the files attached to them.
///
/// # Errors
/// `UnexpectedEof` if the stream ends first; `InvalidData` if more files came than
/// [`FILES_MAX`]; any error of the socket.
pub async fn receive_exact(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
    let mut files = vec![];
    let mut done = 0;
    while done < bytes.len() {
        let read = stream
            .async_io(Interest::READABLE, || {
                receive_some(stream.as_fd(), &mut bytes[done..], &mut files)
            })
            .await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        done += read;
    }
    Ok(files)
}

fn receive_some(
    stream: BorrowedFd<'_>,
    bytes: &mut [u8],
    files: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let message = recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            files.extend(fds);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) || files.len() > FILES_MAX {
        let why = format!("more than {FILES_MAX} files handed over, or no descriptor is left");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn files_come_with_their_bytes() {
        let (left, right) = UnixStream::pair().expect("a pair");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"pool").expect("writes");
        let sent = send(&left, b"header", &[file.as_fd(), file.as_fd()]).await;
        assert_eq!(sent.expect("sends"), 6);
        let mut header = [0; 6];
        let files = receive_exact(&right, &mut header).await.expect("receives");
        assert_eq!((&header, files.len()), (b"header", 2));
        let mut got = std::fs::File::from(files.into_iter().next().expect("two of them"));
        got.rewind().expect("seeks");
        let mut text = String::new();
        got.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "pool");
    }

    #[tokio::test]
    async fn a_stream_that_ends_early_says_so() {
        let (mut left, right) = UnixStream::pair().expect("a pair");
        left.write_all(b"head").await.expect("writes");
        drop(left);
        let error = receive_exact(&right, &mut [0; 6]).await.expect_err("ends");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn too_many_files_are_refused() {
        let (left, _right) = UnixStream::pair().expect("a pair");
        let file = tempfile::tempfile().expect("a file");
        let files = vec![file.as_fd(); FILES_MAX + 1];
        let error = send(&left, b"x", &files).await.expect_err("too many");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
