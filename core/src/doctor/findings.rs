//! What the doctor looks at.

use std::path::{Path, PathBuf};

use crate::host::memlock::LockLimit;
use crate::host::pieces::{FreePieces, TransparentHugePages};
use crate::host::security::SeLinux;
use crate::host::{cores, pieces};
use crate::hypervisor::Accelerator;
use crate::hypervisor::gunyah::probe::{self, Probe};
use crate::hypervisor::kvm::Kvm;

/// Everything that the report is drawn from.
#[derive(Debug, Clone)]
pub struct Findings {
    /// Gunyah's device node.
    pub node: PathBuf,
    /// What is behind it.
    pub gunyah: Probe,
    /// Whether KVM can run a guest; the error says why not.
    pub kvm: Result<(), String>,
    /// Kernel release, as `uname -r` tells it.
    pub kernel: String,
    /// Machine, as `uname -m` tells it.
    pub machine: String,
    /// Cores of the host.
    pub cores: Option<u32>,
    /// State of SELinux.
    pub selinux: SeLinux,
    /// Limit on locked memory.
    pub memlock: Option<LockLimit>,
    /// Free memory by the size of its pieces.
    pub pieces: Option<FreePieces>,
    /// When the kernel makes huge pages.
    pub huge_pages: Option<TransparentHugePages>,
    /// Bytes of a page.
    pub page_size: u64,
}

impl Findings {
    /// Looks at this machine.
    pub fn look() -> Self {
        let node = Path::new(probe::NODE);
        let (kernel, machine) = kernel();
        Self {
            node: node.to_owned(),
            gunyah: probe::probe(node),
            kvm: Kvm.probe().map_err(|error| error.to_string()),
            kernel,
            machine,
            cores: cores::present(),
            selinux: SeLinux::query(),
            memlock: LockLimit::query().ok(),
            pieces: FreePieces::query(),
            huge_pages: TransparentHugePages::query(),
            page_size: pieces::page_size(),
        }
    }
}

/// Release and machine.
fn kernel() -> (String, String) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    (release.trim().to_owned(), std::env::consts::ARCH.to_owned())
}
