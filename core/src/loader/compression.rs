//! Unpacking compressed kernels.

use std::io::{self, BufReader, Read};

use flate2::bufread::GzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// Bytes of compressed input read at a time.
const INPUT_BUFFER: usize = 0x1_0000;

/// How a kernel is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878; one frame.
    Zstd,
}

impl Compression {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// A reader of what `packed` holds. It checks the checksums at its end. What it keeps in memory is bounded: 32 KiB
    /// for gzip, a window of at most 128 MiB, the largest that kernels are built with, for zstd.
    pub(super) fn decoder(self, packed: impl Read + 'static) -> io::Result<Box<dyn Read>> {
        let packed = BufReader::with_capacity(INPUT_BUFFER, packed);
        Ok(match self {
            Self::Gzip => Box::new(GzDecoder::new(packed)),
            Self::Zstd => Box::new(CheckedZstd(StreamingDecoder::new(packed).map_err(io::Error::other)?)),
        })
    }
}

/// A zstd decoder that compares the checksum, which the decoder of ruzstd leaves to its user.
struct CheckedZstd<R: Read>(StreamingDecoder<R, FrameDecoder>);

impl<R: Read> Read for CheckedZstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        let decoder = &self.0.decoder;
        let stored = decoder.get_checksum_from_data();
        if read == 0 && !buffer.is_empty() && stored.is_some() && stored != decoder.get_calculated_checksum()
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "wrong checksum"));
        }
        Ok(read)
    }
}
