//! Argument structures as the program passes them (rule 1.2), decoded from bytes.

/// Read, write, execute: `mem_region.flags` in A and C.
pub(crate) mod region_flags {
    pub(crate) const READ: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const EXEC: u32 = 4;
    pub(crate) const ALL: u32 = READ | WRITE | EXEC;
}

/// Flags of `VM_MAP_MEM` in B. C's header gives the same numbers other meanings.
pub(crate) mod map_flags {
    pub(crate) const ACCESS_MASK: u32 = 0xf;
    pub(crate) const DEFAULT: u32 = 0;
    pub(crate) const LEND: u32 = 1;
    pub(crate) const SHARE: u32 = 2;
    pub(crate) const READ: u32 = 0x10;
    pub(crate) const WRITE: u32 = 0x20;
    pub(crate) const EXEC: u32 = 0x40;
    pub(crate) const RWX: u32 = READ | WRITE | EXEC;
    pub(crate) const UNMAP: u32 = 0x100;
}

/// Flags of `CREATE_GUEST_MEM` in B.
pub(crate) mod create_flags {
    pub(crate) const CLOEXEC: u64 = 1;
    pub(crate) const ALLOW_HUGEPAGE: u64 = 2;
}

/// Function types of `VM_ADD_FUNCTION`.
pub(crate) mod function {
    pub(crate) const VCPU: u32 = 1;
    pub(crate) const IRQFD: u32 = 2;
    pub(crate) const IOEVENTFD: u32 = 3;
    /// Largest `arg_size`.
    pub(crate) const MAX_ARG: u32 = 256;
    /// The one flag of an irqfd.
    pub(crate) const IRQFD_LEVEL: u32 = 1;
    /// The one flag of an ioeventfd.
    pub(crate) const IOEVENTFD_DATAMATCH: u32 = 1;
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..offset + 8).and_then(|field| field.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// A structure the program points a request at.
pub(crate) trait Argument: Sized {
    /// Bytes to copy from the program.
    const SIZE: usize;
    /// Decodes `SIZE` bytes.
    fn decode(bytes: &[u8]) -> Self;
}

/// `mem_region`: user memory, shared or lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemRegion {
    pub(crate) label: u32,
    pub(crate) flags: u32,
    pub(crate) guest: u64,
    pub(crate) size: u64,
    pub(crate) host: u64,
}

impl Argument for MemRegion {
    const SIZE: usize = 32;
    fn decode(bytes: &[u8]) -> Self {
        MemRegion {
            label: u32_at(bytes, 0),
            flags: u32_at(bytes, 4),
            guest: u64_at(bytes, 8),
            size: u64_at(bytes, 16),
            host: u64_at(bytes, 24),
        }
    }
}

/// `dtb_config`, `fw_config` and `addr_range`: a range of guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestRange {
    pub(crate) guest: u64,
    pub(crate) size: u64,
}

impl Argument for GuestRange {
    const SIZE: usize = 16;
    fn decode(bytes: &[u8]) -> Self {
        GuestRange { guest: u64_at(bytes, 0), size: u64_at(bytes, 8) }
    }
}

/// `fn_desc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FunctionDescriptor {
    pub(crate) kind: u32,
    pub(crate) arg_size: u32,
    pub(crate) arg: u64,
}

impl Argument for FunctionDescriptor {
    const SIZE: usize = 16;
    fn decode(bytes: &[u8]) -> Self {
        FunctionDescriptor { kind: u32_at(bytes, 0), arg_size: u32_at(bytes, 4), arg: u64_at(bytes, 8) }
    }
}

/// `fn_vcpu_arg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VcpuArg {
    pub(crate) id: u32,
}

impl Argument for VcpuArg {
    const SIZE: usize = 4;
    fn decode(bytes: &[u8]) -> Self {
        VcpuArg { id: u32_at(bytes, 0) }
    }
}

/// `fn_irqfd_arg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IrqfdArg {
    pub(crate) fd: i32,
    pub(crate) label: u32,
    pub(crate) flags: u32,
}

impl Argument for IrqfdArg {
    const SIZE: usize = 16;
    fn decode(bytes: &[u8]) -> Self {
        IrqfdArg { fd: u32_at(bytes, 0).cast_signed(), label: u32_at(bytes, 4), flags: u32_at(bytes, 8) }
    }
}

/// `fn_ioeventfd_arg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoeventfdArg {
    pub(crate) datamatch: u64,
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) fd: i32,
    pub(crate) flags: u32,
}

impl Argument for IoeventfdArg {
    const SIZE: usize = 32;
    fn decode(bytes: &[u8]) -> Self {
        IoeventfdArg {
            datamatch: u64_at(bytes, 0),
            addr: u64_at(bytes, 8),
            len: u32_at(bytes, 16),
            fd: u32_at(bytes, 20).cast_signed(),
            flags: u32_at(bytes, 24),
        }
    }
}

/// `create_mem` of B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CreateMem {
    pub(crate) flags: u64,
    pub(crate) size: u64,
}

impl Argument for CreateMem {
    const SIZE: usize = 64;
    fn decode(bytes: &[u8]) -> Self {
        CreateMem { flags: u64_at(bytes, 0), size: u64_at(bytes, 8) }
    }
}

/// `map_mem` of B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapMem {
    pub(crate) guest: u64,
    pub(crate) flags: u32,
    pub(crate) fd: i32,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

impl Argument for MapMem {
    const SIZE: usize = 32;
    fn decode(bytes: &[u8]) -> Self {
        MapMem {
            guest: u64_at(bytes, 0),
            flags: u32_at(bytes, 8),
            fd: u32_at(bytes, 12).cast_signed(),
            offset: u64_at(bytes, 16),
            size: u64_at(bytes, 24),
        }
    }
}

/// `boot_ctx` of B and C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BootContext {
    pub(crate) register: u32,
    pub(crate) value: u64,
}

impl Argument for BootContext {
    const SIZE: usize = 16;
    fn decode(bytes: &[u8]) -> Self {
        BootContext { register: u32_at(bytes, 0), value: u64_at(bytes, 8) }
    }
}

/// `auth_desc` of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AuthDescriptor {
    pub(crate) kind: u32,
}

impl Argument for AuthDescriptor {
    const SIZE: usize = 16;
    fn decode(bytes: &[u8]) -> Self {
        AuthDescriptor { kind: u32_at(bytes, 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes 0, 1, 2, ... so that each field's value tells its offset.
    fn counted<T: Argument>() -> T {
        T::decode(&(0..T::SIZE as u8).collect::<Vec<u8>>())
    }

    #[test]
    fn fields_sit_where_the_headers_put_them() {
        let region: MemRegion = counted();
        assert_eq!(region.label.to_le_bytes()[0], 0);
        assert_eq!(region.flags.to_le_bytes()[0], 4);
        assert_eq!(region.guest.to_le_bytes()[0], 8);
        assert_eq!(region.size.to_le_bytes()[0], 16);
        assert_eq!(region.host.to_le_bytes()[0], 24);

        let io: IoeventfdArg = counted();
        assert_eq!(io.datamatch.to_le_bytes()[0], 0);
        assert_eq!(io.addr.to_le_bytes()[0], 8);
        assert_eq!(io.len.to_le_bytes()[0], 16);
        assert_eq!(io.fd.to_le_bytes()[0], 20);
        assert_eq!(io.flags.to_le_bytes()[0], 24);

        let map: MapMem = counted();
        assert_eq!(map.flags.to_le_bytes()[0], 8);
        assert_eq!(map.fd.to_le_bytes()[0], 12);
        assert_eq!(map.offset.to_le_bytes()[0], 16);
        assert_eq!(map.size.to_le_bytes()[0], 24);
    }
}
