// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A log of touches: the order of least recent use in four bytes a record, appended in sequence.
//!
//! Touching a block appends a record and forgets the old one, without reading it: the block knows its
//! position. A linked list would write to two strangers' cache lines for every touch. Records lie in
//! chunks, chunks in a list; a chunk without living records is reused, neighbours that together fit
//! into one are merged, so at most two of three records are dead.
//!
//! Invariant: a record lives exactly if its block says so, by its state and position.

use crate::core::block::{BlockIdx, Blocks};

const CHUNK_BITS: u32 = 11;
const CHUNK: usize = 1 << CHUNK_BITS;
const NONE: u32 = u32::MAX;
/// Records kept for one that lives, at most. At 2 and more there is always a pair to merge.
const SPARSE_MAX: usize = 3;

/// `policy[1]` of a block that is in no log is below this; in a log it is the log's tag.
pub(super) const TAG_MIN: u32 = 16;

#[derive(Debug)]
struct Chunk {
    records: Box<[BlockIdx; CHUNK]>,
    /// Records written.
    len: u32,
    /// Records that live.
    live: u32,
    /// Records before this one are dead; where a search for the oldest begins.
    start: u32,
    prev: u32,
    next: u32,
}

/// The log.
#[derive(Debug)]
pub(super) struct Log {
    /// `policy[1]` of the blocks in this log. Logs of other tenants have other tags: an entry of the
    /// arena that changes its tenant must not bring an old record of the first to life.
    tag: u32,
    chunks: Vec<Chunk>,
    free: Vec<u32>,
    head: u32,
    tail: u32,
    live: usize,
    /// Where the search for chunks to merge goes on.
    sweep: u32,
}

fn position(chunk: u32, at: u32) -> u32 {
    chunk << CHUNK_BITS | at
}

impl Log {
    /// An empty log; `id` is not that of another log over the same blocks.
    pub(super) fn new(id: u32) -> Self {
        Self {
            tag: TAG_MIN + id,
            chunks: Vec::new(),
            free: Vec::new(),
            head: NONE,
            tail: NONE,
            live: 0,
            sweep: NONE,
        }
    }

    /// Whether the block has a living record here.
    pub(super) fn holds(&self, blocks: &Blocks, block: BlockIdx) -> bool {
        blocks.get(block).policy[1] == self.tag
    }

    fn chunk(&mut self, chunk: u32) -> &mut Chunk {
        &mut self.chunks[chunk as usize]
    }

    /// Appends a record for `block`, which has none that lives.
    pub(super) fn append(&mut self, blocks: &mut Blocks, block: BlockIdx) {
        if self.tail == NONE || self.chunk(self.tail).len as usize == CHUNK {
            self.open_chunk();
            self.keep_dense(blocks);
        }
        let tail = self.tail;
        let chunk = self.chunk(tail);
        let at = chunk.len;
        chunk.records[at as usize] = block;
        chunk.len += 1;
        chunk.live += 1;
        self.live += 1;
        blocks.get_mut(block).policy[..2].copy_from_slice(&[position(tail, at), self.tag]);
    }

    /// Forgets the living record at a position. The caller changes the block's words.
    pub(super) fn forget(&mut self, position: u32) {
        let at = position >> CHUNK_BITS;
        self.live -= 1;
        let chunk = self.chunk(at);
        chunk.live -= 1;
        if chunk.live == 0 && at != self.tail {
            self.recycle(at);
        }
    }

    /// The oldest living record.
    pub(super) fn oldest(&mut self, blocks: &Blocks) -> Option<BlockIdx> {
        if self.live == 0 {
            return None;
        }
        let mut at = self.head;
        while self.chunk(at).live == 0 {
            at = self.chunk(at).next;
        }
        let tag = self.tag;
        let chunk = &mut self.chunks[at as usize];
        while !lives(
            blocks,
            tag,
            chunk.records[chunk.start as usize],
            position(at, chunk.start),
        ) {
            chunk.start += 1;
        }
        Some(chunk.records[chunk.start as usize])
    }

    /// Panics unless exactly these blocks have living records, and counters and list say so.
    #[cfg(test)]
    pub(super) fn check(&self, blocks: &Blocks, living: &[BlockIdx]) {
        assert_eq!(self.live, living.len(), "living records");
        let (mut at, mut before, mut seen) = (self.head, NONE, 0);
        while at != NONE {
            let chunk = &self.chunks[at as usize];
            assert_eq!(chunk.prev, before);
            let all = (0..chunk.len).filter(|i| {
                lives(
                    blocks,
                    self.tag,
                    chunk.records[*i as usize],
                    position(at, *i),
                )
            });
            let all: Vec<_> = all.collect();
            assert_eq!(
                all.len(),
                chunk.live as usize,
                "living records of chunk {at}"
            );
            assert!(
                all.first().is_none_or(|first| chunk.start <= *first),
                "a search would miss one"
            );
            assert!(chunk.live > 0 || at == self.tail, "an empty chunk is kept");
            seen += chunk.live as usize;
            (before, at) = (at, chunk.next);
        }
        assert_eq!((before, seen), (self.tail, self.live));
    }

    pub(super) fn bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Chunk>()
            + self.chunks.len() * CHUNK * size_of::<BlockIdx>()
    }

    fn open_chunk(&mut self) {
        let prev = self.tail;
        let fresh = |records| Chunk {
            records,
            len: 0,
            live: 0,
            start: 0,
            prev,
            next: NONE,
        };
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                self.chunks.push(fresh(Box::new([BlockIdx::NONE; CHUNK])));
                (self.chunks.len() - 1) as u32
            }
        };
        let chunk = self.chunk(id);
        (chunk.len, chunk.live, chunk.start) = (0, 0, 0);
        (chunk.prev, chunk.next) = (prev, NONE);
        match prev {
            NONE => self.head = id,
            _ => self.chunk(prev).next = id,
        }
        self.tail = id;
        if prev != NONE && self.chunk(prev).live == 0 {
            self.recycle(prev);
        }
    }

    fn recycle(&mut self, id: u32) {
        let (prev, next) = (self.chunk(id).prev, self.chunk(id).next);
        match prev {
            NONE => self.head = next,
            _ => self.chunk(prev).next = next,
        }
        match next {
            NONE => self.tail = prev,
            _ => self.chunk(next).prev = prev,
        }
        if self.sweep == id {
            self.sweep = next;
        }
        self.free.push(id);
    }

    /// Merges neighbours while more than two of three records may be dead: then two neighbours
    /// that fit into one chunk exist.
    fn keep_dense(&mut self, blocks: &mut Blocks) {
        let wanted = SPARSE_MAX * self.live.div_ceil(CHUNK) + 4;
        while self.chunks.len() - self.free.len() > wanted {
            let Some(older) = self.next_sparse_pair() else {
                return;
            };
            self.merge(blocks, older);
        }
    }

    /// The older of two neighbours, neither of them the tail, that fit into one chunk.
    fn next_sparse_pair(&mut self) -> Option<u32> {
        for _ in 0..2 * self.chunks.len() {
            let older = if self.sweep == NONE {
                self.head
            } else {
                self.sweep
            };
            let newer = self.chunk(older).next;
            if newer == NONE || newer == self.tail {
                self.sweep = self.head;
                continue;
            }
            if (self.chunk(older).live + self.chunk(newer).live) as usize <= CHUNK {
                return Some(older);
            }
            self.sweep = newer;
        }
        None
    }

    /// Moves the living records of `older` and of the chunk after it together into `older`.
    fn merge(&mut self, blocks: &mut Blocks, older: u32) {
        let newer = self.chunk(older).next;
        let mut records = Box::new([BlockIdx::NONE; CHUNK]);
        let mut len = 0;
        for id in [older, newer] {
            let chunk = &self.chunks[id as usize];
            for at in chunk.start..chunk.len {
                let block = chunk.records[at as usize];
                if lives(blocks, self.tag, block, position(id, at)) {
                    records[len as usize] = block;
                    len += 1;
                }
            }
        }
        // Positions change only after all were read: a new position may equal an unread old one.
        for at in 0..len {
            blocks.get_mut(records[at as usize]).policy[0] = position(older, at);
        }
        let chunk = self.chunk(older);
        chunk.records = records;
        (chunk.len, chunk.live, chunk.start) = (len, len, 0);
        self.chunk(newer).live = 0;
        self.recycle(newer);
    }
}

fn lives(blocks: &Blocks, tag: u32, block: BlockIdx, position: u32) -> bool {
    blocks.get(block).policy[..2] == [position, tag]
}
