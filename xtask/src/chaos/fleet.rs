// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The replaying processes of a run: started, watched and counted together.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{bail, ensure};

use super::client::{Client, Seen};
use crate::programs::{Place, Programs, Running, now};

// How long clients may take to be served again before a run counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// How each client replays.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drive {
    pub(super) clients: u32,
    /// Tensor-parallel ranks of each.
    pub(super) ranks: u32,
    /// Wait for blocks on SSD.
    pub(super) ssd: bool,
}

pub(super) struct Fleet {
    drive: Drive,
    pub(super) clients: Vec<Client>,
}

impl Fleet {
    pub(super) fn start(
        drive: Drive,
        programs: &Programs,
        place: &Place,
        server: &mut Running,
    ) -> anyhow::Result<Self> {
        let mut fleet = Self {
            drive,
            clients: vec![],
        };
        for _ in 0..drive.clients.max(1) {
            let client = fleet.client(programs, place)?;
            fleet.clients.push(client);
        }
        fleet.wait_until_served(server, "at the start")?;
        Ok(fleet)
    }

    /// One more client.
    pub(super) fn client(&self, programs: &Programs, place: &Place) -> anyhow::Result<Client> {
        let ranks = self.drive.ranks.to_string();
        let mut command = programs.replay(&place.socket());
        command
            .args(["--sample-ms", "20", "--in-flight", "2", "--ranks", &ranks])
            .args(["--block-bytes", "64KiB", "--reconnect-ms-max", "30000"])
            .stderr(Stdio::inherit());
        if self.drive.ssd {
            command.args(["--wait-ms", "5000"]);
        }
        Client::start(&mut command)
    }

    /// Waits until every client has finished a request from now on; what each has done by then.
    pub(super) fn wait_until_served(
        &mut self,
        server: &mut Running,
        when: &str,
    ) -> anyhow::Result<Vec<Seen>> {
        let (from, until) = (self.marks(), now() + PATIENCE);
        loop {
            self.check()?;
            let marks = self.marks();
            let mut pairs = marks.iter().zip(&from);
            if pairs.all(|(mark, from)| mark.requests > from.requests) {
                return Ok(marks);
            }
            if now() > until {
                bail!("not every client was served within {PATIENCE:?} {when}");
            }
            if !server.is_running() {
                bail!("the server ended by itself {when}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn check(&mut self) -> anyhow::Result<()> {
        let mut clients = self.clients.iter_mut();
        let gone = clients.position(|client| !client.is_running());
        ensure!(gone.is_none(), "client {} gave up", gone.unwrap_or(0));
        Ok(())
    }

    /// Lets them replay.
    pub(super) fn sleep(&mut self, time: Duration) -> anyhow::Result<()> {
        std::thread::sleep(time);
        self.check()
    }

    pub(super) fn marks(&self) -> Vec<Seen> {
        self.clients.iter().map(Client::seen).collect()
    }

    /// What all have done since `marks`.
    pub(super) fn since(&self, marks: &[Seen]) -> Seen {
        let mut sum = Seen::default();
        for (client, mark) in self.clients.iter().zip(marks) {
            sum.add(client.seen().since(mark));
        }
        sum
    }
}
