//! What follows from the findings.

use serde::Serialize;

use super::findings::Findings;
use crate::host::memlock::LockLimit;
use crate::host::pieces::{FreePieces, TransparentHugePages};
use crate::host::security::SeLinux;
use crate::hypervisor::gunyah::probe::{Driver, Probe};
use crate::hypervisor::gunyah::why_unavailable;

/// Guest memory for which limits are judged: gvmm's default.
const DEFAULT_MEMORY: u64 = 256 << 20;

/// The report, as `--json` writes it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether any VM can run here.
    pub can_run: bool,
    /// The Gunyah hypervisor.
    pub gunyah: Gunyah,
    /// KVM.
    pub kvm: Kvm,
    /// The host.
    pub host: Host,
    /// What to do, the most helpful first.
    pub advice: Vec<String>,
}

/// The Gunyah hypervisor.
#[derive(Debug, Clone, Serialize)]
pub struct Gunyah {
    /// Device node.
    pub node: String,
    /// What the node is good for.
    pub state: State,
    /// The state in words.
    pub detail: String,
    /// The driver, if it is usable.
    pub driver: Option<Driver>,
    /// The kinds of VM and whether they run; empty without a usable driver.
    pub kinds: Vec<Kind>,
}

/// What a device node is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// gvmm can use it.
    Usable,
    /// There is none.
    Missing,
    /// This process may not open it.
    NotPermitted,
    /// It is there and does not work.
    Broken,
    /// It belongs to a driver that gvmm cannot use.
    OtherDriver,
}

/// A kind of VM.
#[derive(Debug, Clone, Serialize)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Options that ask gvmm for it.
    pub options: &'static str,
    /// Whether it runs.
    pub runs: Runs,
    /// Why, or on what it depends.
    pub reason: &'static str,
}

/// Whether a kind of VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runs {
    /// As far as the driver goes.
    Yes,
    /// The driver can, and what lies behind it decides.
    Depends,
    /// The driver cannot.
    No,
}

/// KVM.
#[derive(Debug, Clone, Serialize)]
pub struct Kvm {
    /// Whether it can run a guest.
    pub usable: bool,
    /// Why not.
    pub detail: Option<String>,
}

/// The host.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// Machine architecture.
    pub machine: String,
    /// Cores, which is what Gunyah's platforms take as the most vCPUs of a VM.
    pub cores: Option<u32>,
    /// State of SELinux.
    pub selinux: SeLinux,
    /// Limit on locked memory.
    pub memlock: Option<LockLimit>,
    /// Free memory by the size of its pieces.
    pub free_memory: Option<FreePieces>,
    /// When the kernel makes huge pages.
    pub transparent_huge_pages: Option<TransparentHugePages>,
    /// The largest guest for which the driver of generation A would find a free piece for its list of pages, in bytes.
    pub largest_page_list_guest: Option<u64>,
}

impl From<&Findings> for Report {
    fn from(findings: &Findings) -> Self {
        let gunyah = gunyah(findings);
        let kvm = Kvm { usable: findings.kvm.is_ok(), detail: findings.kvm.clone().err() };
        let advice = advice(findings, &gunyah, &kvm);
        let can_run = kvm.usable || gunyah.kinds.iter().any(|kind| kind.runs != Runs::No);
        Self { can_run, gunyah, kvm, host: host(findings), advice }
    }
}

fn gunyah(findings: &Findings) -> Gunyah {
    let (state, driver) = match &findings.gunyah {
        Probe::Usable(driver) => (State::Usable, Some(*driver)),
        Probe::NoNode => (State::Missing, None),
        Probe::NotPermitted(_) => (State::NotPermitted, None),
        Probe::CannotOpen(_) | Probe::CannotCreateVm(_) => (State::Broken, None),
        Probe::Vendor | Probe::Unrecognised => (State::OtherDriver, None),
    };
    let detail = match driver {
        Some(driver) => format!("generation {}: {}", driver.generation, driver.generation.found_in()),
        None => why_unavailable(&findings.gunyah, &findings.node),
    };
    let kinds = driver.map(|driver| kinds(&driver)).unwrap_or_default();
    Gunyah { node: findings.node.display().to_string(), state, detail, driver, kinds }
}

fn kinds(driver: &Driver) -> Vec<Kind> {
    let shared = if driver.generation.runs_in_shared_memory() {
        (
            Runs::Depends,
            "open builds of the Resource Manager accept it; those of phones refuse it at the start",
        )
    } else {
        (Runs::No, "this driver lets no guest execute memory that it shares with the host")
    };
    let protected = if driver.lend {
        (
            Runs::Yes,
            "guest memory is lent, devices work through a window; the guest needs CONFIG_DMA_RESTRICTED_POOL",
        )
    } else {
        (Runs::No, "this driver cannot lend memory")
    };
    let firmware = match (driver.lend, driver.firmware) {
        (true, true) => {
            (Runs::Depends, "the Resource Manager must hold the firmware, as on phones with Android's pvmfw")
        }
        _ => (Runs::No, "this driver starts no firmware"),
    };
    vec![
        Kind { name: "shared memory", options: "", runs: shared.0, reason: shared.1 },
        Kind { name: "protected", options: "--protected", runs: protected.0, reason: protected.1 },
        Kind {
            name: "protected, with firmware",
            options: "--protected --protected-firmware",
            runs: firmware.0,
            reason: firmware.1,
        },
    ]
}

fn host(findings: &Findings) -> Host {
    let page = findings.page_size.max(1);
    Host {
        kernel: findings.kernel.clone(),
        machine: findings.machine.clone(),
        cores: findings.cores,
        selinux: findings.selinux,
        memlock: findings.memlock,
        free_memory: findings.pieces,
        transparent_huge_pages: findings.huge_pages,
        largest_page_list_guest: findings.pieces.map(|pieces| (pieces.largest / 8).saturating_mul(page)),
    }
}

fn advice(findings: &Findings, gunyah: &Gunyah, kvm: &Kvm) -> Vec<String> {
    let mut advice = Vec::new();
    if gunyah.state == State::NotPermitted {
        advice.push(format!("run gvmm as root, or allow this user to open {}", gunyah.node));
        if findings.selinux == SeLinux::Enforcing {
            advice.push(
                "SELinux enforces its policy and may be what forbids it: as root `setenforce 0`".to_owned(),
            );
        }
    }
    if let Some(limit) =
        findings.memlock.filter(|limit| gunyah.driver.is_some() && !limit.could_allow(DEFAULT_MEMORY))
    {
        advice.push(format!(
            "this process may lock {} KiB of memory, less than a guest has: type `ulimit -l unlimited` in a root shell \
             and start gvmm from it",
            limit.soft.unwrap_or(0) / 1024
        ));
    }
    if gunyah.driver.is_some() {
        memory_advice(findings, &mut advice);
    }
    if gunyah.driver.is_none() && !kvm.usable {
        advice.push(
            "to try gvmm on any machine: `cargo xtask demo` in its sources boots a guest under QEMU"
                .to_owned(),
        );
    }
    advice
}

fn memory_advice(findings: &Findings, advice: &mut Vec<String>) {
    if findings.huge_pages.is_none_or(|setting| setting == TransparentHugePages::Never) {
        advice.push(
            "the kernel makes no huge pages by itself, which slows the start and uses up the hypervisor's page tables: \
             as root `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`"
                .to_owned(),
        );
    }
    if findings.pieces.is_some_and(|pieces| pieces.huge < DEFAULT_MEMORY && pieces.free >= DEFAULT_MEMORY) {
        advice.push(
            "free memory is in small pieces: as root `echo 3 > /proc/sys/vm/drop_caches; echo 1 > \
             /proc/sys/vm/compact_memory` before the start of a guest"
                .to_owned(),
        );
    }
}
