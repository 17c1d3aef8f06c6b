//! What a descriptor chain asks for (virtio 1.2, 5.2.6), checked against the disk before anything is done.
//!
//! A request is a header of 16 bytes, data, and a status byte at the very end; how these are cut into descriptors is
//! the driver's choice (virtio 1.2, 2.7.4).
#![forbid(unsafe_code)]

use gvmm_plugin_api::memory::GuestMemory;
use gvmm_plugin_api::queue::{Chain, QueueError, sub_ranges, total_len};

use crate::config::{MAX_RANGE_SECTORS, MAX_RANGE_SEGMENTS, SECTOR_SIZE};

/// Bytes of the header: type, reserved, sector.
const HEADER_SIZE: u64 = 16;
/// Bytes of one segment of a discard or write-zeroes request: sector, number of sectors, flags.
const SEGMENT_SIZE: usize = 16;
/// `unmap` of a segment's flags: a write-zeroes request may give the space back.
const SEGMENT_UNMAP: u32 = 1;

/// Request types (virtio 1.2, 5.2.6).
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// The status byte (virtio 1.2, 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// Done.
    Ok = 0,
    /// Failed, or the request makes no sense.
    IoError = 1,
    /// A request this disk does not know.
    Unsupported = 2,
}

/// A part of the disk in bytes, within its capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What is to be done. The data buffers are what is left in the chain.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Fill the writable buffers from the disk.
    Read(Extent),
    /// Write the readable buffers to the disk.
    Write(Extent),
    /// Make completed writes durable.
    Flush,
    /// Write the serial number to the writable buffers.
    GetId,
    /// Free parts of the disk.
    Discard(Box<Segments>),
    /// Zero parts of the disk.
    WriteZeroes(Box<Segments>),
    /// Nothing: answer with this status.
    Refuse(Status),
}

/// A request whose chain has been cut down to its data buffers.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    /// Guest address of the status byte.
    pub(crate) status_address: u64,
}

/// What requests are checked against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Size of the disk in bytes.
    pub(crate) capacity: u64,
    /// Whether writes are refused.
    pub(crate) readonly: bool,
}

/// The segments of a discard or write-zeroes request.
#[derive(Debug)]
pub(crate) struct Segments {
    bytes: [u8; SEGMENT_SIZE * MAX_RANGE_SEGMENTS as usize],
    count: usize,
}

impl Segments {
    /// Each part of the disk that is not empty, and whether its space may be given back.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Extent, bool)> + '_ {
        self.raw().filter(|(_, sectors, _)| *sectors > 0).map(|(sector, sectors, flags)| {
            let extent = Extent { offset: sector * SECTOR_SIZE, len: u64::from(sectors) * SECTOR_SIZE };
            (extent, flags & SEGMENT_UNMAP != 0)
        })
    }

    fn raw(&self) -> impl Iterator<Item = (u64, u32, u32)> + '_ {
        self.bytes.chunks_exact(SEGMENT_SIZE).take(self.count).map(|segment| {
            (read_u64(segment, 0), read_u64(segment, 8) as u32, (read_u64(segment, 8) >> 32) as u32)
        })
    }

    fn parse(
        chain: &Chain,
        memory: &GuestMemory,
        limits: &Limits,
        flags_known: u32,
    ) -> Result<Box<Self>, Status> {
        let len = usize::try_from(total_len(chain.readable())).map_err(|_| Status::IoError)?;
        let mut segments = Self { bytes: [0; _], count: len / SEGMENT_SIZE };
        if len == 0 || !len.is_multiple_of(SEGMENT_SIZE) || len > segments.bytes.len() {
            return Err(Status::IoError);
        }
        if !matches!(chain.read(memory, 0, &mut segments.bytes[..len]), Ok(true)) {
            return Err(Status::IoError);
        }
        for (sector, sectors, flags) in segments.raw() {
            if flags & !flags_known != 0 {
                return Err(Status::Unsupported);
            }
            if sectors > MAX_RANGE_SECTORS {
                return Err(Status::IoError);
            }
            extent(sector, u64::from(sectors) * SECTOR_SIZE, limits)?;
        }
        Ok(Box::new(segments))
    }
}

/// Takes header and status byte off the chain and checks what is asked for.
///
/// An error means that there is no way to tell the driver what is wrong with the request.
pub(crate) fn parse(chain: &mut Chain, memory: &GuestMemory, limits: &Limits) -> Result<Request, QueueError> {
    let malformed = QueueError::Chain { head: chain.head() };
    let before_status = total_len(chain.writable()).checked_sub(1).ok_or(malformed)?;
    let status = sub_ranges(chain.writable(), before_status, 1).next();
    let status_address = status.ok_or(QueueError::Chain { head: chain.head() })?.address;
    chain.truncate_writable(before_status);
    let operation = operation(chain, memory, limits).unwrap_or_else(Operation::Refuse);
    Ok(Request { operation, status_address })
}

fn operation(chain: &mut Chain, memory: &GuestMemory, limits: &Limits) -> Result<Operation, Status> {
    let mut header = [0; HEADER_SIZE as usize];
    if !matches!(chain.read(memory, 0, &mut header), Ok(true)) {
        return Err(Status::IoError);
    }
    chain.skip_readable(HEADER_SIZE);
    let sector = read_u64(&header, 8);
    let kind = read_u64(&header, 0) as u32;
    if limits.readonly && matches!(kind, kind::OUT | kind::DISCARD | kind::WRITE_ZEROES) {
        return Err(Status::IoError);
    }
    match kind {
        kind::IN => Ok(Operation::Read(extent(sector, total_len(chain.writable()), limits)?)),
        kind::OUT => Ok(Operation::Write(extent(sector, total_len(chain.readable()), limits)?)),
        kind::FLUSH => Ok(Operation::Flush),
        kind::GET_ID => Ok(Operation::GetId),
        kind::DISCARD => Ok(Operation::Discard(Segments::parse(chain, memory, limits, 0)?)),
        kind::WRITE_ZEROES => {
            Ok(Operation::WriteZeroes(Segments::parse(chain, memory, limits, SEGMENT_UNMAP)?))
        }
        _ => Err(Status::Unsupported),
    }
}

/// The part of the disk that begins at a sector, if it is whole sectors within the capacity.
fn extent(sector: u64, len: u64, limits: &Limits) -> Result<Extent, Status> {
    let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Status::IoError)?;
    let end = offset.checked_add(len).ok_or(Status::IoError)?;
    if end > limits.capacity || !len.is_multiple_of(SECTOR_SIZE) {
        return Err(Status::IoError);
    }
    Ok(Extent { offset, len })
}

/// Eight bytes as a little-endian number; zero-extended where there are fewer.
fn read_u64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].iter().take(8).rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl Operation {
    /// Bytes that move between the guest and the disk.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Read(extent) | Self::Write(extent) => extent.len,
            _ => 0,
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(Extent { offset, len }) => write!(f, "reading {len} bytes at {offset}"),
            Self::Write(Extent { offset, len }) => write!(f, "writing {len} bytes at {offset}"),
            Self::Flush => f.write_str("flushing"),
            Self::GetId => f.write_str("reading the serial number"),
            Self::Discard(_) => f.write_str("discarding"),
            Self::WriteZeroes(_) => f.write_str("writing zeroes"),
            Self::Refuse(status) => write!(f, "a request refused as {status:?}"),
        }
    }
}
