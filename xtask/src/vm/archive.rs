// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A cpio archive ("newc"), the form in which the kernel takes its first file system.

/// What is being packed.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

impl Archive {
    pub(super) fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER, &[]);
    }

    pub(super) fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, PROGRAM, content);
    }

    pub(super) fn link(&mut self, name: &str, to: &str) {
        self.entry(name, LINK, to.as_bytes());
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    // Magic, inode, mode, uid, gid, links, mtime, size, device (2), its device (2), length of the name with its zero, check.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let name_bytes = name.len() + 1;
        let fields = [
            self.entries as usize,
            mode as usize,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name_bytes,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_as_the_kernel_reads_them() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.file("bin/sh", b"hello");
        archive.link("init", "bin/sh");
        let bytes = archive.finish();
        let magics = bytes.windows(6).filter(|w| w == b"070701").count();
        assert_eq!((magics, bytes.len() % 4), (4, 0));
        // The second entry: the first has 110 bytes of header and 4 of name, padded to 116.
        let second = &bytes[116..];
        assert_eq!(&second[..6], b"070701");
        assert_eq!(&second[54..62], b"00000005", "five bytes of content");
        assert_eq!(&second[110..117], b"bin/sh\0");
        assert_eq!(&second[120..125], b"hello");
    }
}
