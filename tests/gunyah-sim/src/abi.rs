//! The ABI's numbers: requests by generation, argument layouts, the run page.

pub(crate) mod args;
pub(crate) mod run_page;

/// Page size of the simulated host; the run page and every alignment rule use it.
pub(crate) const PAGE: u64 = 4096;

/// The node a program opens.
pub(crate) const NODE: &str = "/dev/gunyah";

/// Driver generations (rule 1.0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    /// Mailing-list version 14, Android 14-6.1: pages pinned, parcels made at START.
    A,
    /// Mailing-list version 15 and on: guest-memfd objects.
    B,
    /// Android 15-6.6 and on: pages taken on guest touch.
    C,
}

/// A generation with or without its additions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// A as on the mailing list.
    A,
    /// A with Android's lending and firmware requests ("A+" of rule 1.1).
    APlus,
    /// B.
    B,
    /// C as Android 15-6.6 has it.
    C,
    /// C whose kernel answers `CHECK_EXTENSION`.
    CPlus,
}

impl Flavour {
    /// The generation whose rules apply.
    pub(crate) fn generation(self) -> Generation {
        match self {
            Flavour::A | Flavour::APlus => Generation::A,
            Flavour::B => Generation::B,
            Flavour::C | Flavour::CPlus => Generation::C,
        }
    }
}

/// Which file descriptor a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Node,
    Vm,
    Vcpu,
}

/// Every request of every generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    CreateVm,
    SetUserMemRegion,
    SetDtbConfig,
    Start,
    AddFunction,
    VcpuRun,
    VcpuMmapSize,
    RemoveFunction,
    CreateGuestMem,
    MapMem,
    SetBootContext,
    LendUserMem,
    SetFwConfig,
    ReclaimRegion,
    MapCmaMem,
    SetAuthType,
    CheckExtension,
}

struct Row {
    request: Request,
    name: &'static str,
    number: u32,
    owner: Owner,
    flavours: &'static [Flavour],
}

const fn io(kind: u8, number: u32) -> u32 {
    (kind as u32) << 8 | number
}

/// `_IOW`: direction 1 in bits 31..30, size in bits 29..16 (asm-generic/ioctl.h).
const fn iow(kind: u8, number: u32, size: u32) -> u32 {
    1 << 30 | size << 16 | io(kind, number)
}

const ALL: &[Flavour] = &[Flavour::A, Flavour::APlus, Flavour::B, Flavour::C, Flavour::CPlus];
const USER_MEMORY: &[Flavour] = &[Flavour::A, Flavour::APlus, Flavour::C, Flavour::CPlus];
const ANDROID: &[Flavour] = &[Flavour::APlus, Flavour::C, Flavour::CPlus];
const GUEST_MEMFD: &[Flavour] = &[Flavour::B];
const BOOT_CONTEXT: &[Flavour] = &[Flavour::B, Flavour::C, Flavour::CPlus];
const C: &[Flavour] = &[Flavour::C, Flavour::CPlus];
const C_PLUS: &[Flavour] = &[Flavour::CPlus];

/// rule 1.1. Names without the `GH_`/`GUNYAH_` prefix, as traces and injections use them.
const TABLE: &[Row] = &[
    row(Request::CreateVm, "CREATE_VM", io(b'G', 0), Owner::Node, ALL),
    row(Request::SetUserMemRegion, "VM_SET_USER_MEM_REGION", iow(b'G', 1, 32), Owner::Vm, USER_MEMORY),
    row(Request::SetDtbConfig, "VM_SET_DTB_CONFIG", iow(b'G', 2, 16), Owner::Vm, ALL),
    row(Request::Start, "VM_START", io(b'G', 3), Owner::Vm, ALL),
    row(Request::AddFunction, "VM_ADD_FUNCTION", iow(b'G', 4, 16), Owner::Vm, ALL),
    row(Request::VcpuRun, "VCPU_RUN", io(b'G', 5), Owner::Vcpu, ALL),
    row(Request::VcpuMmapSize, "VCPU_MMAP_SIZE", io(b'G', 6), Owner::Vcpu, ALL),
    row(Request::RemoveFunction, "VM_REMOVE_FUNCTION", iow(b'G', 7, 16), Owner::Vm, ALL),
    row(Request::CreateGuestMem, "CREATE_GUEST_MEM", iow(b'G', 8, 64), Owner::Node, GUEST_MEMFD),
    row(Request::MapMem, "VM_MAP_MEM", iow(b'G', 9, 32), Owner::Vm, GUEST_MEMFD),
    row(Request::SetBootContext, "VM_SET_BOOT_CONTEXT", iow(b'G', 0xa, 16), Owner::Vm, BOOT_CONTEXT),
    row(Request::LendUserMem, "VM_ANDROID_LEND_USER_MEM", iow(b'A', 0x11, 32), Owner::Vm, ANDROID),
    row(Request::SetFwConfig, "VM_ANDROID_SET_FW_CONFIG", iow(b'A', 0x12, 16), Owner::Vm, ANDROID),
    row(Request::ReclaimRegion, "VM_RECLAIM_REGION", iow(b'A', 0x13, 16), Owner::Vm, C),
    row(Request::MapCmaMem, "VM_ANDROID_MAP_CMA_MEM", iow(b'A', 0x15, 40), Owner::Vm, C),
    row(Request::SetAuthType, "VM_ANDROID_SET_AUTH_TYPE", iow(b'A', 0x16, 16), Owner::Vm, C),
    row(Request::CheckExtension, "CHECK_EXTENSION", io(b'A', 0x17), Owner::Vm, C_PLUS),
];

const fn row(
    request: Request,
    name: &'static str,
    number: u32,
    owner: Owner,
    flavours: &'static [Flavour],
) -> Row {
    Row { request, name, number, owner, flavours }
}

impl Request {
    /// The request `number` means on a descriptor of kind `owner`, if this flavour knows it.
    pub(crate) fn decode(flavour: Flavour, owner: Owner, number: u32) -> Option<Request> {
        TABLE
            .iter()
            .find(|row| row.number == number && row.owner == owner && row.flavours.contains(&flavour))
            .map(|row| row.request)
    }

    /// The name used in traces and injections.
    pub(crate) fn name(self) -> &'static str {
        TABLE.iter().find(|row| row.request == self).map_or("?", |row| row.name)
    }

    /// Whether any request carries this name.
    pub(crate) fn is_name(name: &str) -> bool {
        TABLE.iter().any(|row| row.name == name)
    }
}

/// The name of `number` in any flavour, for requests the simulated one refuses.
pub(crate) fn name_of(number: u32) -> String {
    TABLE
        .iter()
        .find(|row| row.number == number)
        .map_or_else(|| format!("{number:#x}"), |row| row.name.to_owned())
}

/// Whether the request's type byte is one the driver uses: anything else goes to the kernel.
pub(crate) fn is_driver_type(number: u32) -> bool {
    matches!((number >> 8) as u8, b'G' | b'A')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_those_of_the_headers() {
        let expected = [
            ("CREATE_VM", 0x4700),
            ("VM_SET_USER_MEM_REGION", 0x4020_4701),
            ("VM_SET_DTB_CONFIG", 0x4010_4702),
            ("VM_START", 0x4703),
            ("VM_ADD_FUNCTION", 0x4010_4704),
            ("VCPU_RUN", 0x4705),
            ("VCPU_MMAP_SIZE", 0x4706),
            ("VM_REMOVE_FUNCTION", 0x4010_4707),
            ("CREATE_GUEST_MEM", 0x4040_4708),
            ("VM_MAP_MEM", 0x4020_4709),
            ("VM_SET_BOOT_CONTEXT", 0x4010_470a),
            ("VM_ANDROID_LEND_USER_MEM", 0x4020_4111),
            ("VM_ANDROID_SET_FW_CONFIG", 0x4010_4112),
            ("VM_RECLAIM_REGION", 0x4010_4113),
            ("VM_ANDROID_MAP_CMA_MEM", 0x4028_4115),
            ("VM_ANDROID_SET_AUTH_TYPE", 0x4010_4116),
            ("CHECK_EXTENSION", 0x4117),
        ];
        assert_eq!(expected.len(), TABLE.len());
        for (name, number) in expected {
            assert_eq!(name_of(number), name);
        }
    }

    #[test]
    fn each_generation_knows_its_own_requests_only() {
        let knows = |flavour, number| Request::decode(flavour, Owner::Vm, number).is_some();
        assert!(!knows(Flavour::A, 0x4010_470a));
        assert!(knows(Flavour::B, 0x4010_470a));
        assert!(!knows(Flavour::B, 0x4020_4701));
        assert!(!knows(Flavour::A, 0x4020_4111));
        assert!(knows(Flavour::APlus, 0x4020_4111));
        assert!(!knows(Flavour::C, 0x4020_4709));
        assert!(!knows(Flavour::C, 0x4117));
        assert!(knows(Flavour::CPlus, 0x4117));
    }

    #[test]
    fn a_request_belongs_to_one_kind_of_descriptor() {
        assert_eq!(Request::decode(Flavour::A, Owner::Node, 0x4703), None);
        assert_eq!(Request::decode(Flavour::A, Owner::Vm, 0x4703), Some(Request::Start));
    }
}
