// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Handles of the engine: its streams and events, which it made and we only use.

use super::super::buffers::Word;
use super::super::ffi::{self, Api, Handle};
use super::{Context, Event, PinnedMemory};
use crate::Result;
use std::sync::Arc;

/// A stream of the engine (a `cudaStream_t`, as PyTorch's `stream.cuda_stream`). Stays the engine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineStream(u64);

impl EngineStream {
    /// Takes the handle as the engine gives it; 0 is the legacy default stream.
    ///
    /// # Safety
    /// The handle is a live stream of the GPU's primary context in this process, and stays so while calls use it.
    pub unsafe fn from_raw(handle: u64) -> Self {
        Self(handle)
    }

    pub(in super::super) fn handle(self) -> Handle {
        self.0 as Handle
    }
}

/// Work of the engine that a copy waits for.
pub struct EngineEvent(Kind);

enum Kind {
    /// Recorded by us on the engine's stream.
    Recorded(Event),
    /// Recorded by the engine.
    Given { api: &'static Api, handle: u64 },
}

impl EngineEvent {
    /// An event that the engine recorded (a `cudaEvent_t`, as PyTorch's `event.cuda_event`).
    ///
    /// # Safety
    /// The handle is a live event of the GPU's primary context in this process, and stays so until the copy is over.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] without a CUDA driver.
    pub unsafe fn from_raw(handle: u64) -> Result<Self> {
        Ok(Self(Kind::Given {
            api: super::super::open_driver()?,
            handle,
        }))
    }

    /// All work that the engine's stream has now.
    pub(in super::super) fn record(context: &Arc<Context>, stream: EngineStream) -> Result<Self> {
        let event = Event::new(context)?;
        // SAFETY: our event; the stream's maker vouched for it.
        let code = unsafe { (context.api.event_record)(event.raw(), stream.handle()) };
        context.check("cuEventRecord", code)?;
        Ok(Self(Kind::Recorded(event)))
    }

    /// Whether it has passed.
    pub(in super::super) fn done(&self) -> Result<bool> {
        match &self.0 {
            Kind::Recorded(event) => event.done(),
            Kind::Given { api, handle } => {
                // SAFETY: a live event, as its maker vouched.
                match unsafe { (api.event_query)(*handle as Handle) } {
                    ffi::ERROR_NOT_READY => Ok(false),
                    _ => Ok(true),
                }
            }
        }
    }
}

/// Lets the engine's streams wait for a copy, layer by layer. May be used before, while and after the copy runs.
pub struct Gate {
    context: Arc<Context>,
    word: Arc<Word>,
}

impl Gate {
    pub(in super::super) fn new(context: &Arc<Context>, word: &Arc<Word>) -> Self {
        Self {
            context: Arc::clone(context),
            word: Arc::clone(word),
        }
    }

    /// What is submitted to `stream` from now on starts when the first `layers` layers of the copy are done, or the copy is
    /// over, also by failing. `None` means all layers.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver cannot make streams wait for memory.
    pub fn hold(&self, stream: EngineStream, layers: Option<u32>) -> Result<()> {
        let _current = self.context.enter()?;
        let value = layers.map_or(self.word.end(), |n| self.word.value(n));
        let (words, index): (&PinnedMemory, usize) = (self.word.memory(), self.word.index());
        // SAFETY: the word lives as long as the device, whose context this is; the stream's maker vouched for it.
        let code = unsafe {
            (self.context.api.stream_wait_value)(
                stream.handle(),
                words.word_address(index),
                value,
                ffi::WAIT_VALUE_GEQ,
            )
        };
        self.context.check("cuStreamWaitValue32", code)
    }

    /// Layers done so far, as the GPU says.
    pub fn layers(&self) -> u32 {
        self.word.reached()
    }
}
