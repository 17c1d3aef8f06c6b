//! What `VM_START` does before the first vCPU can run (rule 1.5, 1.6).

use crate::abi::args::GuestRange;
use crate::abi::{Flavour, Generation, PAGE};
use crate::errno::Errno;
use crate::rm::{self, Build, Code, Description, Message, Offer, Refusal, Region};

use super::boot::BootState;
use super::memory::{Backing, Entry, HostRange};
use super::{Driver, Phase};

/// A huge page is charged as one page (rule 2.3): the least a guest of a given size is charged in C.
const LARGEST_FOLIO: u64 = 2 << 20;

/// Facts of the simulated host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    pub(crate) build: Build,
    pub(crate) cores: u32,
    pub(crate) seed: u64,
    /// Bytes the program may lock; `None` where nobody counts.
    pub(crate) memlock: Option<u64>,
}

/// Copies bytes out of a region: offset and length.
pub(crate) type ReadRegion<'a> = &'a dyn Fn(&Entry, u64, usize) -> Option<Vec<u8>>;

/// Why a START failed, as the driver's caller and the kernel log see it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) errno: Errno,
    /// Message and code, where the Resource Manager said it.
    pub(crate) answer: Option<(Message, Code)>,
    pub(crate) why: String,
}

/// Outcome of planning a START.
pub(crate) enum Outcome {
    Ready(Box<Plan>),
    Refused(Failure),
    /// vCPUs and tree disagree: a real host kernel oopses later (rule 9).
    HostOops(String),
}

/// A page the guest can never get (C): RUN reports it each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StandingFault {
    pub(crate) addr: u64,
    pub(crate) errno: Errno,
}

/// A VM that can run.
pub(crate) struct Plan {
    pub(crate) description: Description,
    pub(crate) boot: BootState,
    /// Index of the region that holds the tree.
    pub(crate) image: usize,
    pub(crate) tree: GuestRange,
    pub(crate) fault: Option<StandingFault>,
    /// Lines of the kernel log.
    pub(crate) warnings: Vec<String>,
}

impl Failure {
    fn kernel(errno: Errno, why: impl Into<String>) -> Failure {
        Failure { errno, answer: None, why: why.into() }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure { errno: refusal.errno(), answer: Some((refusal.message, refusal.code)), why: refusal.why }
    }
}

impl Driver {
    /// Whether START has anything to do: 0 if running, ENODEV if it can never run again (rule 1.5).
    pub(crate) fn is_fresh(&self) -> Result<bool, Errno> {
        match self.phase {
            Phase::Fresh => Ok(true),
            Phase::Running => Ok(false),
            Phase::Failed | Phase::Ended(_) => Err(Errno::ENODEV),
        }
    }

    /// Checks everything; `read` copies bytes out of a region. Changes nothing.
    pub(crate) fn plan_start(&self, host: Host, read: ReadRegion<'_>) -> Outcome {
        match self.check_start(host, read) {
            Ok(plan) => match self.check_vcpus(plan.description.vcpus) {
                Some(mismatch) => Outcome::HostOops(mismatch),
                None => Outcome::Ready(Box::new(plan)),
            },
            Err(failure) => Outcome::Refused(failure),
        }
    }

    fn check_start(&self, host: Host, read: ReadRegion<'_>) -> Result<Plan, Failure> {
        let regions: Vec<Region> = self.memory.entries.iter().map(|entry| entry.region).collect();
        let (image, entry) = self.find_image()?;
        let offset = self.tree.guest - entry.region.guest;
        let length = usize::try_from(self.tree.size).unwrap_or(usize::MAX);
        let tree_bytes = read(entry, offset, length)
            .ok_or_else(|| self.pre_configure(Errno::EFAULT, "the device tree's memory is not mapped"))?;
        if let Some(range) = self.firmware.filter(|range| self.memory.find(*range).is_none()) {
            let why = format!("no region holds the firmware at {:#x}", range.guest);
            return Err(self.pre_configure(Errno::EINVAL, why));
        }
        let mut regions_of_image = regions;
        // B lends the tree's parcel whatever the mapping says (list v15).
        if let Some(region) = regions_of_image.get_mut(image).filter(|_| self.generation() == Generation::B) {
            region.lent = true;
        }
        let mut description = rm::describe(&Offer {
            generation: self.generation(),
            android: self.flavour != Flavour::A,
            build: host.build,
            cores: host.cores,
            regions: &regions_of_image,
            image,
            tree: self.tree,
            tree_bytes: &tree_bytes,
            firmware: self.firmware,
            seed: host.seed,
        })?;
        let boot = self.boot_state(&description, image);
        let mut warnings = std::mem::take(&mut description.warnings);
        warnings.extend(self.check_bells(&description));
        Ok(Plan {
            fault: self.standing_fault(&boot, host),
            description,
            boot,
            image,
            tree: self.tree,
            warnings,
        })
    }

    /// The region the tree is in. A wants all of it there; B and C begin with its first page.
    fn find_image(&self) -> Result<(usize, &Entry), Failure> {
        let whole = self.memory.find(self.tree);
        let first = self.memory.find(GuestRange { guest: self.tree.guest, size: 1 });
        let found = whole.filter(|_| self.tree.size >= PAGE || self.generation() == Generation::A);
        match found.and_then(|index| self.memory.entries.get(index).map(|entry| (index, entry))) {
            Some(found) => Ok(found),
            None => {
                let errno = if first.is_none() { Errno::ENOENT } else { Errno::EINVAL };
                let why = format!(
                    "the device tree at {:#x} of {:#x} bytes is not in one region",
                    self.tree.guest, self.tree.size
                );
                Err(self.pre_configure(errno, why))
            }
        }
    }

    /// Failures before CONFIG_IMAGE: A says EINVAL, B the reason, C ENODEV whatever it was (rule 1.4).
    fn pre_configure(&self, errno: Errno, why: impl Into<String>) -> Failure {
        let errno = match self.generation() {
            Generation::A => Errno::EINVAL,
            Generation::B => errno,
            Generation::C => Errno::ENODEV,
        };
        Failure::kernel(errno, why)
    }

    /// rule 3.6.
    fn boot_state(&self, description: &Description, image: usize) -> BootState {
        let image_base = description.placed.get(image).copied().unwrap_or_default();
        let tree = description.tree_address;
        if let Some(firmware) = description.firmware_address {
            let payload = self.boot.pc().unwrap_or(image_base);
            let size = self.memory.entries.get(image).map_or(0, |entry| entry.region.size);
            let mut state = super::boot::BootContext::default().state(firmware, tree);
            state.x.extend([(1, payload), (2, size)]);
            return state;
        }
        match self.generation() {
            Generation::A => self.boot.state(image_base, tree),
            // Only the tree's parcel is the image here.
            Generation::B | Generation::C => self.boot.state(tree, tree),
        }
    }

    /// Bells that will never ring, which neither ADD_FUNCTION nor START reports (rule 9).
    fn check_bells(&self, description: &Description) -> Vec<String> {
        let mut warnings = Vec::new();
        for (label, irqfd) in &self.functions.irqfds {
            match description.doorbells.iter().find(|bell| bell.label == *label) {
                None => warnings.push(format!("irqfd label {label} has no doorbell: it will never ring")),
                Some(bell) if irqfd.level && !bell.source_can_clear => {
                    warnings.push(format!("irq {label} couldn't be set as level triggered"));
                }
                Some(bell) if irqfd.level != bell.line.is_some_and(|line| line.level) => {
                    warnings.push(format!("irqfd label {label} and its doorbell differ on level and edge"));
                }
                Some(_) => {}
            }
        }
        warnings
    }

    /// What demand paging will never manage (rule 2.3). A pinned everything already.
    fn standing_fault(&self, boot: &BootState, host: Host) -> Option<StandingFault> {
        if self.generation() == Generation::A {
            return None;
        }
        let entry_at = |addr: u64| {
            self.memory.find(GuestRange { guest: addr, size: 1 }).and_then(|at| self.memory.entries.get(at))
        };
        let in_tree = boot.pc >= self.tree.guest && boot.pc - self.tree.guest < self.tree.size;
        match entry_at(boot.pc) {
            None => return Some(StandingFault { addr: boot.pc, errno: Errno::ENOENT }),
            // Shared folios are never executable outside the parcel.
            Some(entry) if !entry.region.lent && !in_tree => {
                return Some(StandingFault { addr: boot.pc, errno: Errno::EPERM });
            }
            Some(_) => {}
        }
        if self.generation() == Generation::B {
            return None;
        }
        let bad_backing = self.memory.entries.iter().find_map(|entry| match entry.backing {
            Backing::User { kind: HostRange::File, .. } => Some((entry.region.guest, Errno::EIO)),
            Backing::User { kind: HostRange::Unmapped, .. } => Some((entry.region.guest, Errno::EFAULT)),
            _ => None,
        });
        if let Some((addr, errno)) = bad_backing {
            return Some(StandingFault { addr, errno });
        }
        let least = self.memory.total().div_ceil(LARGEST_FOLIO) * PAGE;
        let starved = host.memlock.is_some_and(|limit| least > limit);
        starved.then_some(StandingFault { addr: boot.pc & !(PAGE - 1), errno: Errno::ENOMEM })
    }

    fn check_vcpus(&self, in_tree: u32) -> Option<String> {
        let given: Vec<u32> = self.functions.vcpus.iter().copied().collect();
        let wanted: Vec<u32> = (0..in_tree).collect();
        (given != wanted)
            .then(|| format!("the tree describes vCPUs {wanted:?} but ADD_FUNCTION made {given:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::args::MemRegion;
    use crate::rm::tests::valid_tree;

    const TREE: u64 = 0x8800_0000;

    fn host() -> Host {
        Host { build: Build::Debug, cores: 8, seed: 1, memlock: None }
    }

    fn driver(flavour: Flavour, lend: bool) -> Driver {
        let mut driver = Driver::new(flavour);
        let region = MemRegion { label: 0, flags: 7, guest: 0x8000_0000, size: 0x1000_0000, host: 0x1000 };
        driver.memory.add_user(&region, lend, HostRange::SwapBacked, None).unwrap();
        driver.functions.add_vcpu(0).unwrap();
        driver.set_tree(GuestRange { guest: TREE, size: 0x4000 }).unwrap();
        driver
    }

    fn start(driver: &Driver, host: Host) -> Outcome {
        driver.plan_start(host, &|_, _, length| {
            let mut bytes = valid_tree(1).write();
            bytes.resize(length, 0);
            Some(bytes)
        })
    }

    fn plan(driver: &Driver, host: Host) -> Box<Plan> {
        match start(driver, host) {
            Outcome::Ready(plan) => plan,
            Outcome::Refused(failure) => panic!("refused: {}", failure.why),
            Outcome::HostOops(why) => panic!("host oops: {why}"),
        }
    }

    fn failure(driver: &Driver) -> Errno {
        match start(driver, host()) {
            Outcome::Refused(failure) => failure.errno,
            _ => panic!("not refused"),
        }
    }

    #[test]
    fn generation_a_starts_at_its_region_and_c_where_it_is_told() {
        assert_eq!(plan(&driver(Flavour::A, false), host()).boot.pc, 0x8000_0000);
        let mut c = driver(Flavour::C, true);
        assert_eq!(plan(&c, host()).boot.pc, TREE);
        c.set_boot_context(0x100, 0x8020_0000).unwrap();
        let plan = plan(&c, host());
        assert_eq!((plan.boot.pc, plan.boot.x.get(&0)), (0x8020_0000, Some(&TREE)));
    }

    #[test]
    fn a_tree_outside_memory_has_one_errno_per_generation() {
        for (flavour, errno) in [(Flavour::A, Errno::EINVAL), (Flavour::C, Errno::ENODEV)] {
            let mut driver = driver(flavour, true);
            driver.set_tree(GuestRange { guest: 0x7000_0000, size: 0x4000 }).unwrap();
            assert_eq!(failure(&driver), errno);
        }
    }

    #[test]
    fn vcpus_and_tree_have_to_agree() {
        let mut more = driver(Flavour::A, false);
        more.functions.add_vcpu(1).unwrap();
        assert!(matches!(start(&more, host()), Outcome::HostOops(_)));
        let mut fewer = driver(Flavour::A, false);
        fewer.functions.remove_vcpu(0).unwrap();
        assert!(matches!(start(&fewer, host()), Outcome::HostOops(_)));
    }

    #[test]
    fn shared_memory_is_not_executable_in_generation_c() {
        let mut shared = driver(Flavour::C, false);
        shared.set_boot_context(0x100, 0x8000_0000).unwrap();
        let fault = plan(&shared, host()).fault;
        assert_eq!(fault, Some(StandingFault { addr: 0x8000_0000, errno: Errno::EPERM }));
        let mut lent = driver(Flavour::C, true);
        lent.set_boot_context(0x100, 0x8000_0000).unwrap();
        assert_eq!(plan(&lent, host()).fault, None);
    }

    #[test]
    fn demand_paging_starves_on_a_small_memlock() {
        let mut driver = driver(Flavour::C, true);
        driver.set_boot_context(0x100, 0x8000_0000).unwrap();
        let fault = plan(&driver, Host { memlock: Some(64 << 10), ..host() }).fault;
        assert_eq!(fault.map(|fault| fault.errno), Some(Errno::ENOMEM));
        assert_eq!(plan(&driver, Host { memlock: Some(1 << 30), ..host() }).fault, None);
    }

    #[test]
    fn a_second_start_is_harmless_and_a_dead_vm_cannot_start() {
        let mut driver = driver(Flavour::A, false);
        driver.phase = Phase::Running;
        assert_eq!(driver.is_fresh(), Ok(false));
        driver.phase = Phase::Failed;
        assert_eq!(driver.is_fresh(), Err(Errno::ENODEV));
    }

    #[test]
    fn a_label_without_a_bell_is_only_logged() {
        let mut driver = driver(Flavour::A, false);
        let arg = crate::abi::args::IrqfdArg { fd: 0, label: 77, flags: 0 };
        let event = std::sync::Arc::new(crate::host::event::Event::new().unwrap());
        driver.functions.add_irqfd(&arg, event).unwrap();
        assert!(plan(&driver, host()).warnings[0].contains("label 77 has no doorbell"));
    }
}
