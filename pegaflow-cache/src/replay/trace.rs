// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Reads request traces: JSON lines, plain or gzip, one request at a time.
//!
//! The form is the public one of the Mooncake traces: one object per line with `timestamp` (ms),
//! `input_length` and `output_length` (tokens) and `hash_ids` (one id per block of the prompt; equal ids
//! mean an equal prefix up to and including that block). Unknown fields are ignored.
//!
//! Never holds more than one line; every length has a limit; every error names its line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One request of a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Arrival, in milliseconds since the start of the trace.
    #[serde(rename = "timestamp")]
    pub arrival_ms: u64,
    /// Tokens of the prompt.
    #[serde(rename = "input_length")]
    pub input_tokens: u64,
    /// Tokens generated.
    #[serde(rename = "output_length")]
    pub output_tokens: u64,
    /// Ids of the prompt's blocks, the last one possibly not full.
    #[serde(rename = "hash_ids")]
    pub blocks: Vec<u64>,
}

/// What is wrong with a trace, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file could not be opened or read (also: a damaged gzip stream).
    #[error("line {line}: {source}")]
    Io {
        /// Line that was being read, from 1; 0 before the first.
        line: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is longer than `line_bytes_max`.
    #[error("line {line}: longer than {limit} bytes (`line_bytes_max`)")]
    LineTooLong {
        /// The line, from 1.
        line: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// A line is not a JSON object of the expected form.
    #[error("line {line}: {source}")]
    Json {
        /// The line, from 1.
        line: u64,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A request names more blocks than `blocks_max`.
    #[error("line {line}: {blocks} blocks in one request, {limit} allowed (`blocks_max`)")]
    TooManyBlocks {
        /// The line, from 1.
        line: u64,
        /// Blocks the request names.
        blocks: usize,
        /// The limit.
        limit: usize,
    },
}

/// Limits of a [`TraceReader`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceLimits {
    /// Longest line, in bytes without its line break.
    pub line_bytes_max: u64,
    /// Most blocks in one request.
    pub blocks_max: usize,
}

impl Default for TraceLimits {
    fn default() -> Self {
        Self {
            line_bytes_max: 4 << 20,
            blocks_max: 64 * 1024,
        }
    }
}

/// Iterates over the requests of a trace. After an error it ends.
pub struct TraceReader<R> {
    input: R,
    limits: TraceLimits,
    line: u64,
    buf: Vec<u8>,
    ended: bool,
}

impl TraceReader<Box<dyn BufRead + Send>> {
    /// Opens a trace file; gzip is recognised by its first bytes, not by its name.
    ///
    /// # Errors
    /// [`TraceError::Io`] if the file cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let at_start = |source| TraceError::Io { line: 0, source };
        let mut file = BufReader::new(File::open(path).map_err(at_start)?);
        let zipped = file
            .fill_buf()
            .map_err(at_start)?
            .starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn BufRead + Send> = if zipped {
            Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file)))
        } else {
            Box::new(file)
        };
        Ok(Self::new(input, TraceLimits::default()))
    }
}

impl<R: BufRead> TraceReader<R> {
    /// Reads a plain (unpacked) trace from `input`.
    pub fn new(input: R, limits: TraceLimits) -> Self {
        Self {
            input,
            limits,
            line: 0,
            buf: Vec::new(),
            ended: false,
        }
    }

    /// Lines read so far.
    pub fn line(&self) -> u64 {
        self.line
    }

    // The next line with content in `self.buf`; false at the end of the input.
    fn read_line(&mut self) -> Result<bool, TraceError> {
        let limit = self.limits.line_bytes_max;
        loop {
            self.buf.clear();
            self.line += 1;
            // Two bytes more than allowed: room for `\r\n`, and enough to see that a line is too long.
            let read = self
                .input
                .by_ref()
                .take(limit.saturating_add(2))
                .read_until(b'\n', &mut self.buf);
            let got = read.map_err(|source| TraceError::Io {
                line: self.line,
                source,
            })?;
            if got == 0 {
                self.line -= 1;
                return Ok(false);
            }
            let text = self.buf.trim_ascii_end().len();
            if text as u64 > limit || (got as u64 == limit + 2 && self.buf.last() != Some(&b'\n')) {
                return Err(TraceError::LineTooLong {
                    line: self.line,
                    limit,
                });
            }
            self.buf.truncate(text);
            if !self.buf.trim_ascii_start().is_empty() {
                return Ok(true);
            }
        }
    }

    fn read_request(&mut self) -> Result<Option<Request>, TraceError> {
        if !self.read_line()? {
            return Ok(None);
        }
        let line = self.line;
        let request: Request = serde_json::from_slice(&self.buf)
            .map_err(|source| TraceError::Json { line, source })?;
        let (blocks, limit) = (request.blocks.len(), self.limits.blocks_max);
        if blocks > limit {
            return Err(TraceError::TooManyBlocks {
                line,
                blocks,
                limit,
            });
        }
        Ok(Some(request))
    }
}

impl<R: BufRead> Iterator for TraceReader<R> {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read_request().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: TraceLimits = TraceLimits {
        line_bytes_max: 100,
        blocks_max: 4,
    };
    const ONE: &str = r#"{"timestamp":7,"input_length":600,"output_length":9,"hash_ids":[1,2]}"#;

    fn one() -> Request {
        Request {
            arrival_ms: 7,
            input_tokens: 600,
            output_tokens: 9,
            blocks: vec![1, 2],
        }
    }

    /// Number of requests read before the end or the error, and the error's text.
    fn check(input: &str, requests: usize, error: &str) {
        let mut got = 0;
        let mut text = String::new();
        for item in TraceReader::new(input.as_bytes(), LIMITS) {
            match item {
                Ok(request) => {
                    assert_eq!(request, one());
                    got += 1;
                }
                Err(e) => text = e.to_string(),
            }
        }
        assert_eq!(got, requests, "{input:?}");
        assert!(
            text.starts_with(error) && text.is_empty() == error.is_empty(),
            "{text:?}"
        );
    }

    #[test]
    fn reads_lines_and_says_where_a_bad_one_is() {
        check("", 0, "");
        check("\n \r\n\n", 0, "");
        check(ONE, 1, "");
        check(&format!("{ONE}\r\n\n{ONE}\n"), 2, "");
        check(&ONE.replace("}", ",\"type\":\"x\"}"), 1, "");
        check(&format!("{ONE}\n{{}}\n{ONE}"), 1, "line 2: missing field");
        check(&ONE.replace('7', "-7"), 0, "line 1: invalid value");
        check("\n\u{fffd}", 0, "line 2: expected value");
        check(&format!("{ONE}\n{}", " ".repeat(101)), 1, "");
        check(
            &format!("{ONE}\n{}", "x".repeat(101)),
            1,
            "line 2: longer than 100 bytes",
        );
        check(
            &format!("{ONE}\n{}", "x".repeat(999)),
            1,
            "line 2: longer than 100 bytes",
        );
        check(
            &ONE.replace("1,2", "1,2,3,4,5"),
            0,
            "line 1: 5 blocks in one request, 4 allowed",
        );
    }

    #[test]
    fn gzip_is_recognised_and_damage_is_an_error() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writeln!(zipped, "{ONE}\n{ONE}").expect("writing to memory");
        let zipped = zipped.finish().expect("writing to memory");
        let read = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).expect("a small file");
            TraceReader::open(&path)
                .expect("it exists")
                .collect::<Result<Vec<_>, _>>()
        };
        assert_eq!(read("plain.gz", ONE.as_bytes()).expect("plain"), [one()]);
        assert_eq!(read("packed", &zipped).expect("packed"), [one(), one()]);
        let cut = read("cut", &zipped[..zipped.len() - 9]);
        assert!(matches!(cut, Err(TraceError::Io { .. })), "{cut:?}");
        let missing = TraceReader::open(&dir.path().join("missing"));
        assert!(matches!(missing, Err(TraceError::Io { line: 0, .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_requests_or_an_error(input: Vec<u8>) {
            let items = TraceReader::new(input.as_slice(), LIMITS).collect::<Vec<_>>();
            prop_assert!(items.iter().rev().skip(1).all(Result::is_ok));
        }

        #[test]
        fn damaged_traces_never_panic(at in 0usize..140, byte: u8, cut in 0usize..140) {
            let mut input = format!("{ONE}\n{ONE}\n").into_bytes();
            let last = input.len() - 1;
            input[at.min(last)] = byte;
            input.truncate(cut);
            prop_assert!(TraceReader::new(input.as_slice(), LIMITS).count() <= 3);
        }

        #[test]
        fn what_is_written_is_read(arrival_ms: u64, input_tokens: u64, output_tokens: u64,
                                   blocks in prop::collection::vec(any::<u64>(), 0..50)) {
            let request = Request { arrival_ms, input_tokens, output_tokens, blocks };
            let line = serde_json::to_vec(&request).expect("plain numbers");
            let mut reader = TraceReader::new(line.as_slice(), TraceLimits::default());
            prop_assert_eq!(reader.next().expect("one line").expect("valid"), request);
            prop_assert!(reader.next().is_none());
        }
    }
}
