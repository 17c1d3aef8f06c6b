//! A file that is read once, from its first byte to its last, and may be looked into first.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Error;
use super::compression::Compression;

/// Bytes of a file that can be looked at: enough for the headers of every format that is told apart.
const HEAD_SIZE: u64 = 4096;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte.
    pub(super) offset: u64,
    /// Bytes; to the end of the file if `None`.
    pub(super) size: Option<u64>,
}

/// How much of a source went into a piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// All of it, this many bytes.
    Whole(u64),
    /// As much as there was room for.
    Part,
}

/// A file, or what is in a compressed one.
pub(super) struct Source {
    what: &'static str,
    path: PathBuf,
    /// The bytes from `head` on.
    rest: Box<dyn Read>,
    head: Vec<u8>,
    compression: Option<Compression>,
    /// Length of a regular file that is not compressed.
    file_size: Option<u64>,
}

impl Source {
    /// Opens a file of at least one byte; `what` names it in messages.
    pub(super) fn open(what: &'static str, path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Open { what, path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mut source = Self {
            what,
            path: path.to_owned(),
            rest: Box::new(file),
            head: Vec::new(),
            compression: None,
            file_size: metadata.is_file().then_some(metadata.len()),
        };
        source.read_head()?;
        Ok(source)
    }

    /// What a part of the file holds in compressed form.
    pub(super) fn unpack(self, compression: Compression, payload: Extent) -> Result<Self, Error> {
        let mut packed = io::Cursor::new(self.head).chain(self.rest);
        let skipped = io::copy(&mut packed.by_ref().take(payload.offset), &mut io::sink());
        let skipped =
            skipped.map_err(|source| Error::Read { what: self.what, path: self.path.clone(), source })?;
        if skipped < payload.offset {
            return Err(Error::Truncated { path: self.path, length: skipped, expected: payload.offset });
        }
        let packed = packed.take(payload.size.unwrap_or(u64::MAX));
        let name = compression.name();
        let damaged = |source| Error::Damaged { path: self.path.clone(), compression: name, source };
        let rest = compression.decoder(packed).map_err(damaged)?;
        let mut unpacked = Self {
            rest,
            head: Vec::new(),
            compression: Some(compression),
            file_size: None,
            what: self.what,
            path: self.path,
        };
        unpacked.read_head()?;
        Ok(unpacked)
    }

    fn read_head(&mut self) -> Result<(), Error> {
        let outcome = (&mut self.rest).take(HEAD_SIZE).read_to_end(&mut self.head);
        outcome.map_err(|source| self.read_error(source))?;
        if self.head.is_empty() {
            return Err(Error::Empty { what: self.what, path: self.path.clone() });
        }
        Ok(())
    }

    /// The first bytes: 4 KiB, or all there are.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Length, where it is known before the end is reached.
    pub(super) fn file_size(&self) -> Option<u64> {
        self.file_size
    }

    /// Reads everything into `memory`.
    pub(super) fn fill(mut self, memory: &mut [u8]) -> Result<Filled, Error> {
        let Some((start, mut rest)) = memory.split_at_mut_checked(self.head.len()) else {
            return Ok(Filled::Part);
        };
        start.copy_from_slice(&self.head);
        let mut length = self.head.len() as u64;
        while !rest.is_empty() {
            match self.rest.read(rest) {
                Ok(0) => return Ok(Filled::Whole(length)),
                Ok(read) => {
                    length += read as u64;
                    rest = rest.get_mut(read..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(error)),
            }
        }
        let more = io::copy(&mut self.rest.by_ref().take(1), &mut io::sink())
            .map_err(|error| self.read_error(error))?;
        Ok(if more == 0 { Filled::Whole(length) } else { Filled::Part })
    }

    /// The error for a content that is not a kernel.
    pub(super) fn foreign(self, found: &str, advice: &'static str) -> Error {
        let found = match self.compression {
            Some(compression) => format!("{found}, compressed with {}", compression.name()),
            None => found.to_owned(),
        };
        Error::Foreign { path: self.path, found, advice }
    }

    fn read_error(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        match self.compression {
            Some(compression) => Error::Damaged { path, compression: compression.name(), source },
            None => Error::Read { what: self.what, path, source },
        }
    }
}
