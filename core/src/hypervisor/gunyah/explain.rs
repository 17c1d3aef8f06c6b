//! What a refusal by the driver means.
//!
//! The driver answers with bare error numbers, and the Resource Manager behind it folds most mistakes into a single
//! one. A refusal is therefore told with the name of the call, the causes that this call has, and the line of the
//! kernel log that says more.

use std::fmt;
use std::io;

use super::probe::{Failure, Generation};
use crate::hypervisor::Error;

/// A call that can be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    CreateVm,
    SetUserMemRegion,
    LendUserMem,
    CreateGuestMem,
    MapMem,
    AddVcpu,
    AddIrqfd,
    AddIoeventfd,
    SetDtbConfig,
    SetFwConfig,
    SetBootContext,
    Start,
    VcpuMmapSize,
    MapRunPage,
    VcpuRun,
}

impl Call {
    /// Its name in the headers of the generation.
    pub(crate) fn name(self, generation: Generation) -> String {
        let (name, android) = match self {
            Self::CreateVm => ("CREATE_VM", false),
            Self::SetUserMemRegion => ("VM_SET_USER_MEM_REGION", generation == Generation::C),
            Self::LendUserMem => ("VM_ANDROID_LEND_USER_MEM", true),
            Self::CreateGuestMem => ("CREATE_GUEST_MEM", false),
            Self::MapMem => ("VM_MAP_MEM", false),
            Self::AddVcpu => ("VM_ADD_FUNCTION(vcpu)", false),
            Self::AddIrqfd => ("VM_ADD_FUNCTION(irqfd)", false),
            Self::AddIoeventfd => ("VM_ADD_FUNCTION(ioeventfd)", false),
            Self::SetDtbConfig => ("VM_SET_DTB_CONFIG", false),
            Self::SetFwConfig => ("VM_ANDROID_SET_FW_CONFIG", true),
            Self::SetBootContext => ("VM_SET_BOOT_CONTEXT", false),
            Self::Start => ("VM_START", false),
            Self::VcpuMmapSize => ("VCPU_MMAP_SIZE", false),
            Self::MapRunPage => return "mmap of the vCPU's run page".to_owned(),
            Self::VcpuRun => ("VCPU_RUN", false),
        };
        // Android kept the prefix of generation A for the calls that it had added there.
        let prefix = if generation == Generation::A || android { "GH" } else { "GUNYAH" };
        format!("{prefix}_{name}")
    }

    fn adds_function(self) -> Option<(u32, &'static str)> {
        match self {
            Self::AddVcpu => Some((1, "gunyah_vcpu")),
            Self::AddIrqfd => Some((2, "gunyah_irqfd")),
            Self::AddIoeventfd => Some((3, "gunyah_ioeventfd")),
            _ => None,
        }
    }
}

/// A call that was refused.
#[derive(Debug)]
pub(crate) struct Refusal<'a> {
    /// Which.
    pub call: Call,
    /// By whose driver.
    pub generation: Generation,
    /// What it was about: `RAM, 256 MiB at 0x80000000`. Empty where the call says it all.
    pub subject: &'a str,
    /// The answer.
    pub failure: Failure,
    /// Causes that gvmm found by itself; with one, those that are only likely are not told.
    pub findings: &'a [String],
    /// What the kernel logged meanwhile.
    pub kernel_log: &'a [String],
}

impl<'a> Refusal<'a> {
    /// A refusal about which nothing but the answer is known.
    pub(crate) fn new(call: Call, generation: Generation, subject: &'a str, error: &io::Error) -> Self {
        Self { call, generation, subject, failure: Failure::from(error), findings: &[], kernel_log: &[] }
    }
}

impl From<Refusal<'_>> for Error {
    fn from(refusal: Refusal<'_>) -> Self {
        Self::Call(refusal.to_string())
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.call.name(self.generation))?;
        if !self.subject.is_empty() {
            write!(f, " for {}", self.subject)?;
        }
        write!(f, ": {}, from a driver of generation {}", self.failure, self.generation)?;
        let likely = self.causes();
        let (title, causes) = match self.findings {
            [] => ("likely causes", likely.as_slice()),
            findings => ("cause", findings),
        };
        if !causes.is_empty() {
            write!(f, "\n  {title}:")?;
        }
        for cause in causes {
            write!(f, "\n  - {cause}")?;
        }
        if self.kernel_log.is_empty() {
            if let Some(hint) = self.log_hint() {
                write!(
                    f,
                    "\n  the kernel log says more (as root: dmesg | grep -i -e gunyah -e gh_): {hint}"
                )?;
            }
        } else {
            write!(f, "\n  the kernel log says:")?;
            for line in self.kernel_log {
                write!(f, "\n    {line}")?;
                if let Some(step) = step_of_log_line(line) {
                    write!(f, " ({step})")?;
                }
            }
        }
        Ok(())
    }
}

impl Refusal<'_> {
    fn causes(&self) -> Vec<String> {
        if let (Some((number, module)), libc::ENOENT) = (self.call.adds_function(), self.failure.0) {
            return vec![format!(
                "the kernel has no module for this kind of function: load it by `modprobe {module}`, or build the \
                 kernel with it (it is asked for as ghfunc:{number})"
            )];
        }
        causes(self.call, self.generation, self.failure.0).iter().map(|cause| (*cause).to_owned()).collect()
    }

    fn log_hint(&self) -> Option<&'static str> {
        match self.call {
            Call::Start => Some(
                "a line `RM rejected message ID. Error: CODE` names the step; 5600000b is VM_INIT, where code 2 \
                 stands for any mistake in the device tree or its vdevices",
            ),
            Call::VcpuRun | Call::SetUserMemRegion | Call::LendUserMem | Call::MapMem => {
                Some("look for lines of the VM manager at this time")
            }
            call if call.adds_function().is_some() => Some("look for lines of the VM manager at this time"),
            _ => None,
        }
    }
}

/// The causes that a call has for an error, the likeliest first.
fn causes(call: Call, generation: Generation, errno: i32) -> &'static [&'static str] {
    match call {
        Call::CreateVm => create_causes(errno),
        Call::SetUserMemRegion | Call::LendUserMem => memory_causes(generation, errno),
        Call::CreateGuestMem | Call::MapMem => object_causes(errno),
        Call::AddVcpu | Call::AddIrqfd | Call::AddIoeventfd => function_causes(call, errno),
        Call::SetDtbConfig | Call::SetFwConfig | Call::SetBootContext => setting_causes(call, errno),
        Call::Start => start_causes(generation, errno),
        Call::VcpuRun => run_causes(generation, errno),
        Call::VcpuMmapSize | Call::MapRunPage => &[],
    }
}

fn create_causes(errno: i32) -> &'static [&'static str] {
    match errno {
        libc::EINVAL | libc::ENOTTY => &["the device belongs to an older vendor driver; see `gvmm doctor`"],
        libc::EMFILE | libc::ENFILE => &["too many open files: raise the limit by `ulimit -n`"],
        libc::ENOMEM => &["the host is out of memory"],
        _ => &[],
    }
}

fn memory_causes(generation: Generation, errno: i32) -> &'static [&'static str] {
    match (errno, generation) {
        (libc::ENOMEM, Generation::A) => &[
            "RLIMIT_MEMLOCK is smaller than guest memory: start gvmm from a root shell after `ulimit -l unlimited`",
            "the host's memory is too fragmented for the driver's list of pages, one contiguous block of 8 bytes a \
             page: as root `echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory`, or give the \
             guest less memory",
            "the host is out of memory",
        ],
        (libc::ENOMEM, _) => &["the host is out of memory"],
        (libc::EFAULT, _) => &["pages of guest memory could not be pinned: the host is out of memory"],
        (libc::EPERM, _) => &["the call came from another process than the one that made the VM"],
        (libc::EEXIST, _) => &["two regions overlap, or have the same label"],
        (libc::EINVAL | libc::EOVERFLOW, _) => &[
            "the region is not a multiple of the host's page size, or the driver is not the one that gvmm takes it for",
        ],
        (libc::ENOTTY, _) => &["the driver cannot lend memory: run without --protected"],
        _ => &[],
    }
}

fn object_causes(errno: i32) -> &'static [&'static str] {
    match errno {
        libc::ENOMEM => &["the host is out of memory"],
        libc::EINVAL => &[
            "the region is not a multiple of a huge page",
            "the driver has flags of a version that gvmm does not know",
        ],
        libc::EEXIST => &["two regions overlap, or one memory object is given to two VMs"],
        libc::EMFILE | libc::ENFILE => &["too many open files: raise the limit by `ulimit -n`"],
        _ => &[],
    }
}

fn function_causes(call: Call, errno: i32) -> &'static [&'static str] {
    match (errno, call) {
        (libc::EEXIST, Call::AddVcpu) => &["a vCPU of this number was added before"],
        (libc::EEXIST, Call::AddIrqfd) => &["two devices are on one interrupt line: each needs its own"],
        (libc::EEXIST, _) => &["two devices claim writes to the same address"],
        (libc::EBADF, _) => &["the eventfd was closed"],
        (libc::EINVAL, Call::AddIoeventfd) => &["the driver does not match values of this width"],
        (libc::EINVAL, _) => &["the driver is not the one that gvmm takes it for"],
        (libc::ENOMEM, _) => &["the host is out of memory"],
        (libc::EMFILE | libc::ENFILE, _) => &["too many open files: raise the limit by `ulimit -n`"],
        _ => &[],
    }
}

fn setting_causes(call: Call, errno: i32) -> &'static [&'static str] {
    match (errno, call) {
        (libc::EOVERFLOW, _) => &["the range ends beyond the address space"],
        (libc::ENOTTY, Call::SetFwConfig) => {
            &["the driver cannot run firmware: leave --protected-firmware out"]
        }
        (libc::EINVAL, Call::SetBootContext) => &["the VM has been started, or the register is not one"],
        _ => &[],
    }
}

fn start_causes(generation: Generation, errno: i32) -> &'static [&'static str] {
    match (errno, generation) {
        (libc::ENODEV, Generation::A) => &[
            "more vCPUs than the platform has cores",
            "the VM is not protected, and the Resource Manager takes protected ones alone, as on phones: add --protected",
            "it refuses something in the device tree; `gvmm --dump-dtb FILE` writes the tree",
            "another VM is still being taken down: try again in a few seconds",
        ],
        (libc::ENODEV, _) => &[
            "more vCPUs than the platform has cores",
            "the Resource Manager refuses something in the device tree; `gvmm --dump-dtb FILE` writes the tree",
            "another VM is still being taken down: try again in a few seconds",
            "after a failure of memory some phones refuse every VM until they are rebooted",
        ],
        (libc::EPERM, _) => &[
            "the Resource Manager denies this VM: the platform runs authenticated or protected VMs alone",
            "it holds no firmware for a VM that asks for one",
        ],
        (libc::EBUSY, _) => &["the Resource Manager is busy with another VM: try again in a few seconds"],
        (libc::EOPNOTSUPP, _) => {
            &["the Resource Manager is older than the driver and lacks a message that it sends"]
        }
        (libc::EBADMSG, _) => &["the Resource Manager answered with a code that the driver does not know"],
        (libc::ENOMEM, _) => &[
            "the Resource Manager or the hypervisor is out of memory: give the guest less, or end other VMs",
            "memory is so fragmented that it takes too many pieces: compact it, see `gvmm doctor`",
        ],
        (libc::EINVAL, _) => &[
            "the device tree is not inside one region of memory, or not at a page boundary",
            "the Resource Manager found an argument that it does not take",
        ],
        _ => &[],
    }
}

fn run_causes(generation: Generation, errno: i32) -> &'static [&'static str] {
    match (errno, generation) {
        (libc::ENODEV, _) => &["the VM is gone, or its device tree lacks this vCPU"],
        (libc::EBUSY, _) => &["the VM is being shut down and its end is not reported"],
        (libc::EPERM, _) => &["the call came from another process than the one that made the VM"],
        (libc::EINVAL, Generation::C) => {
            &["the hypervisor reports a state of the vCPU that the driver does not know"]
        }
        (libc::EFAULT, _) => &["the hypervisor could not reach memory of the VM"],
        _ => &[],
    }
}

/// The step of the start whose message the Resource Manager rejected, if a line of the kernel log names one.
fn step_of_log_line(line: &str) -> Option<&'static str> {
    let id = line.split_once("RM rejected message ")?.1.get(..8)?;
    Some(match u32::from_str_radix(id, 16).ok()? {
        0x5600_0001 => "ALLOC_VMID, the first step of a start",
        0x5600_0004 => "VM_START, the last step of a start",
        0x5600_0005 => "VM_STOP",
        0x5600_0006 => "VM_RESET, part of taking a VM down",
        0x5600_0009 => "CONFIG_IMAGE, which names memory and device tree",
        0x5600_000a => "AUTH_IMAGE",
        0x5600_000b => "VM_INIT, which reads the device tree",
        0x5600_0020 => "GET_HYP_RESOURCES",
        0x5600_0031 => "SET_BOOT_CONTEXT",
        0x5600_0032 => "SET_FIRMWARE_MEM",
        0x5100_0011 => "MEM_ACCEPT",
        0x5100_0012 => "MEM_LEND",
        0x5100_0013 => "MEM_SHARE",
        0x5100_0015 => "MEM_RECLAIM",
        0x5100_0018 => "MEM_APPEND",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(call: Call, generation: Generation, errno: i32) -> String {
        Refusal::new(call, generation, "", &io::Error::from_raw_os_error(errno)).to_string()
    }

    #[test]
    fn names_calls_as_the_headers_of_the_generation_do() {
        assert_eq!(Call::Start.name(Generation::A), "GH_VM_START");
        assert_eq!(Call::Start.name(Generation::C), "GUNYAH_VM_START");
        assert_eq!(Call::SetUserMemRegion.name(Generation::C), "GH_VM_SET_USER_MEM_REGION");
        assert_eq!(Call::LendUserMem.name(Generation::C), "GH_VM_ANDROID_LEND_USER_MEM");
        assert_eq!(Call::CreateGuestMem.name(Generation::B), "GUNYAH_CREATE_GUEST_MEM");
    }

    #[test]
    fn tells_call_subject_error_generation_causes_and_log_line() {
        let error = io::Error::from_raw_os_error(libc::ENOMEM);
        let subject = "RAM, 256 MiB at 0x80000000";
        let text = Refusal::new(Call::SetUserMemRegion, Generation::A, subject, &error).to_string();
        let first = text.lines().next().unwrap();
        assert_eq!(
            first,
            "GH_VM_SET_USER_MEM_REGION for RAM, 256 MiB at 0x80000000: Cannot allocate memory (ENOMEM), from a driver \
             of generation A"
        );
        assert!(text.contains("ulimit -l unlimited"), "{text}");
        assert!(text.contains("dmesg"), "{text}");
    }

    #[test]
    fn tells_what_was_found_instead_of_what_is_only_likely() {
        let findings = ["this VM has 16 vCPUs and the host 8 cores".to_owned()];
        let error = io::Error::from_raw_os_error(libc::ENODEV);
        let refusal = Refusal { findings: &findings, ..Refusal::new(Call::Start, Generation::A, "", &error) };
        let text = refusal.to_string();
        let causes: Vec<_> = text.lines().filter(|line| line.starts_with("  - ")).collect();
        assert_eq!(causes, ["  - this VM has 16 vCPUs and the host 8 cores"]);
    }

    #[test]
    fn explains_the_lines_of_the_kernel_log() {
        let log = ["gh_rsc_mgr hypervisor: RM rejected message 5600000b. Error: 2".to_owned()];
        let error = io::Error::from_raw_os_error(libc::ENODEV);
        let text =
            Refusal { kernel_log: &log, ..Refusal::new(Call::Start, Generation::A, "", &error) }.to_string();
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            "    gh_rsc_mgr hypervisor: RM rejected message 5600000b. Error: 2 (VM_INIT, which reads the device tree)"
        );
        assert!(!text.contains("dmesg"), "{text}");
    }

    #[test]
    fn names_the_module_that_a_function_needs() {
        assert!(refusal(Call::AddIrqfd, Generation::A, libc::ENOENT).contains("modprobe gunyah_irqfd"));
    }

    #[test]
    fn has_a_cause_for_every_error_that_the_drivers_are_known_to_give() {
        use Generation::{A, B, C};
        let known = [
            (Call::CreateVm, A, libc::EINVAL),
            (Call::SetUserMemRegion, A, libc::EPERM),
            (Call::SetUserMemRegion, C, libc::EINVAL),
            (Call::SetUserMemRegion, A, libc::EOVERFLOW),
            (Call::LendUserMem, C, libc::EEXIST),
            (Call::LendUserMem, A, libc::ENOMEM),
            (Call::LendUserMem, A, libc::ENOTTY),
            (Call::CreateGuestMem, B, libc::ENOMEM),
            (Call::MapMem, B, libc::EINVAL),
            (Call::SetBootContext, C, libc::EINVAL),
            (Call::AddVcpu, A, libc::ENOENT),
            (Call::AddVcpu, C, libc::EEXIST),
            (Call::AddIrqfd, C, libc::EEXIST),
            (Call::AddIrqfd, C, libc::EBADF),
            (Call::AddIoeventfd, C, libc::EEXIST),
            (Call::AddIoeventfd, A, libc::EINVAL),
            (Call::Start, A, libc::EINVAL),
            (Call::Start, A, libc::ENODEV),
            (Call::Start, C, libc::ENODEV),
            (Call::Start, A, libc::EPERM),
            (Call::Start, A, libc::EBUSY),
            (Call::Start, B, libc::EOPNOTSUPP),
            (Call::Start, A, libc::EBADMSG),
            (Call::VcpuRun, A, libc::ENODEV),
            (Call::VcpuRun, A, libc::EBUSY),
            (Call::VcpuRun, C, libc::EPERM),
            (Call::VcpuRun, C, libc::EINVAL),
        ];
        for (call, generation, errno) in known {
            let text = refusal(call, generation, errno);
            assert!(text.contains("\n  - "), "{text}");
        }
    }

    #[test]
    fn makes_no_step_of_other_log_lines() {
        assert_eq!(step_of_log_line("RM rejected message 5600"), None);
        assert_eq!(step_of_log_line("RM rejected message wxyz1234"), None);
        assert_eq!(step_of_log_line("something else"), None);
    }
}
