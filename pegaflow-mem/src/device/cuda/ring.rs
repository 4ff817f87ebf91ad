// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The ring of staging slots of one direction.
//!
//! A slot is filled by one side (gather kernel or DMA) and emptied by the other; two events per slot keep them apart
//! without the CPU. Invariant: whoever fills a slot has waited for the event of whoever emptied it last.

use super::driver::{Context, DeviceMemory, Event, Span};
use crate::Result;
use std::sync::Arc;

/// Slots side by side in one allocation.
pub(super) struct Ring {
    memory: DeviceMemory,
    slot_bytes: u64,
    slots: Vec<SlotEvents>,
    next: usize,
}

/// What marks the state of a slot.
pub(super) struct SlotEvents {
    /// The kernel has filled it (save) or emptied it (load).
    pub kernel: Event,
    /// DMA has emptied it (save) or filled it (load).
    pub dma: Event,
    /// Whether the events were ever recorded.
    pub used: bool,
}

/// Smallest slot that is worth having.
const SLOT_BYTES_MIN: u64 = 1 << 20;

impl Ring {
    /// `count` slots of `slot_bytes`; half as large, and so on, where the device has no room.
    ///
    /// # Errors
    /// The driver's refusal of the smallest ring.
    pub(super) fn new(context: &Arc<Context>, slot_bytes: u64, count: usize) -> Result<Self> {
        let mut bytes = slot_bytes.max(SLOT_BYTES_MIN);
        let memory = loop {
            match DeviceMemory::new(context, bytes * count as u64) {
                Ok(memory) => break memory,
                Err(refused) if bytes / 2 < SLOT_BYTES_MIN => return Err(refused),
                Err(_) => bytes /= 2,
            }
        };
        let slot = || -> Result<SlotEvents> {
            Ok(SlotEvents {
                kernel: Event::new(context)?,
                dma: Event::new(context)?,
                used: false,
            })
        };
        let slots = (0..count).map(|_| slot()).collect::<Result<_>>()?;
        Ok(Self {
            memory,
            slot_bytes: bytes,
            slots,
            next: 0,
        })
    }

    pub(super) fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// The next slot in turn.
    pub(super) fn turn(&mut self) -> (Span, &mut SlotEvents) {
        let i = self.next;
        self.next = (i + 1) % self.slots.len();
        (
            self.memory
                .span()
                .part(i as u64 * self.slot_bytes, self.slot_bytes),
            &mut self.slots[i],
        )
    }
}
