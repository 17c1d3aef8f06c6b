//! Payloads of messages ("Payload").

use super::channel::MAX_BODY;

/// Most regions in one memory table.
pub const MAX_TABLE_REGIONS: usize = 8;
/// Bytes in front of the content of a configuration payload.
pub const CONFIG_HEADER: usize = 12;
/// Most bytes of configuration space in one message.
pub const MAX_CONFIG: usize = MAX_BODY - CONFIG_HEADER;
/// Bit of a ring's event payload that says that no descriptor comes with it.
const NO_FD: u64 = 1 << 8;

/// Takes numbers from the front of a payload.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    /// The value, if nothing is left.
    fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

/// A payload of a fixed form.
pub trait Payload: Sized {
    /// Its bytes.
    fn encode(&self) -> Vec<u8>;
    /// The payload of exactly these bytes.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl Payload for u64 {
    fn encode(&self) -> Vec<u8> {
        self.to_ne_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let value = reader.u64()?;
        reader.end(value)
    }
}

impl Payload for () {
    fn encode(&self) -> Vec<u8> {
        Vec::new()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Reader(bytes).end(())
    }
}

/// A number about a ring ("A vring state description").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringState {
    /// The ring.
    pub index: u32,
    /// The number.
    pub num: u32,
}

impl Payload for VringState {
    fn encode(&self) -> Vec<u8> {
        [self.index.to_ne_bytes(), self.num.to_ne_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let value = Self { index: reader.u32()?, num: reader.u32()? };
        reader.end(value)
    }
}

/// Where a ring's parts are, in addresses of the front end's process ("A vring address description").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringAddress {
    /// The ring.
    pub index: u32,
    /// Bit 0: writes to the used ring are to be logged for migration.
    pub flags: u32,
    /// Descriptor table.
    pub descriptor: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub available: u64,
    /// Guest address for the log.
    pub log: u64,
}

impl Payload for VringAddress {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = [self.index.to_ne_bytes(), self.flags.to_ne_bytes()].concat();
        for address in [self.descriptor, self.used, self.available, self.log] {
            bytes.extend(address.to_ne_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let value = Self {
            index: reader.u32()?,
            flags: reader.u32()?,
            descriptor: reader.u64()?,
            used: reader.u64()?,
            available: reader.u64()?,
            log: reader.u64()?,
        };
        reader.end(value)
    }
}

/// A ring whose kick, call or error event is set; the event comes as a descriptor, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringEvent {
    /// The ring.
    pub index: u8,
    /// Whether a descriptor comes with the message.
    pub has_fd: bool,
}

impl Payload for VringEvent {
    fn encode(&self) -> Vec<u8> {
        (u64::from(self.index) | if self.has_fd { 0 } else { NO_FD }).encode()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let value = u64::decode(bytes)?;
        // The index has the low 8 bits.
        Some(Self { index: value as u8, has_fd: value & NO_FD == 0 })
    }
}

/// A region of guest memory ("Memory regions description").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest address of the first byte.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
    /// Address of the first byte in the front end's process.
    pub user_address: u64,
    /// Offset of the first byte in the file.
    pub mmap_offset: u64,
}

impl Region {
    fn encode(&self) -> impl Iterator<Item = u8> {
        let fields = [self.guest_address, self.size, self.user_address, self.mmap_offset];
        fields.into_iter().flat_map(u64::to_ne_bytes)
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            guest_address: reader.u64()?,
            size: reader.u64()?,
            user_address: reader.u64()?,
            mmap_offset: reader.u64()?,
        })
    }
}

/// All regions of guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryTable(pub Vec<Region>);

impl Payload for MemoryTable {
    fn encode(&self) -> Vec<u8> {
        // A sender keeps to MAX_TABLE_REGIONS.
        let count = self.0.len() as u32;
        let mut bytes = [count.to_ne_bytes(), [0; 4]].concat();
        bytes.extend(self.0.iter().flat_map(Region::encode));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let count = usize::try_from(reader.u32()?).ok().filter(|count| *count <= MAX_TABLE_REGIONS)?;
        reader.u32()?;
        let regions = (0..count).map(|_| Region::read(&mut reader)).collect::<Option<_>>()?;
        // QEMU sends the regions that there are; others send a table of eight. What is behind them means nothing.
        Some(Self(regions))
    }
}

/// One region that comes or goes ("Single memory region description").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SingleRegion(pub Region);

impl Payload for SingleRegion {
    fn encode(&self) -> Vec<u8> {
        [0; 8].into_iter().chain(self.0.encode()).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        reader.u64()?;
        let region = Region::read(&mut reader)?;
        reader.end(Self(region))
    }
}

/// A part of the configuration space ("Virtio device config space").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Offset of the first byte.
    pub offset: u32,
    /// 0 for what the driver writes, 1 for migration.
    pub flags: u32,
    /// Content; empty in an answer that says that there is none.
    pub content: Vec<u8>,
}

impl Payload for Config {
    fn encode(&self) -> Vec<u8> {
        // A sender keeps to MAX_CONFIG.
        let size = self.content.len() as u32;
        let mut bytes = [self.offset.to_ne_bytes(), size.to_ne_bytes(), self.flags.to_ne_bytes()].concat();
        bytes.extend_from_slice(&self.content);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let (offset, size, flags) = (reader.u32()?, reader.u32()?, reader.u32()?);
        // An answer that refuses has size 0, and some back ends leave the content of the request behind it.
        let size = usize::try_from(size).ok()?;
        let content = if size == 0 { &[] } else { reader.0 };
        (content.len() == size).then(|| Self { offset, flags, content: content.to_vec() })
    }
}

/// The region in which requests in flight are noted ("Inflight description").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inflight {
    /// Bytes.
    pub mmap_size: u64,
    /// Offset of the first byte in the file.
    pub mmap_offset: u64,
    /// Queues that have a part in it.
    pub queues: u16,
    /// Entries of each queue.
    pub queue_size: u16,
}

impl Payload for Inflight {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = [self.mmap_size.to_ne_bytes(), self.mmap_offset.to_ne_bytes()].concat();
        bytes.extend(self.queues.to_ne_bytes());
        bytes.extend(self.queue_size.to_ne_bytes());
        // QEMU's structure is not packed: it has four bytes behind the last field.
        bytes.extend([0; 4]);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let value = Self {
            mmap_size: reader.u64()?,
            mmap_offset: reader.u64()?,
            queues: reader.u16()?,
            queue_size: reader.u16()?,
        };
        matches!(reader.0.len(), 0 | 4).then_some(value)
    }
}
