// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! SIGTERM and SIGINT: the first asks to stop, the second ends at once.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit status of a process that a signal ended, before the signal's number.
const BY_SIGNAL: i32 = 128;

/// Both signals, caught from the moment this exists.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts to catch.
    pub(crate) fn new() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self {
            terminate,
            interrupt,
        })
    }

    /// Waits for the next one and gives its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// From now on a signal ends the process, whatever it is doing.
    pub(crate) fn second_ends_the_process(mut self) {
        tokio::spawn(async move {
            let (name, kind) = match self.next().await {
                name @ "SIGTERM" => (name, SignalKind::terminate()),
                name => (name, SignalKind::interrupt()),
            };
            tracing::warn!(signal = name, "a second signal: ending at once");
            std::process::exit(BY_SIGNAL + kind.as_raw_value());
        });
    }
}
