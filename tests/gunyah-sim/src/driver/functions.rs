//! vCPUs, irqfds and ioeventfds of a VM (rule 1.4, 5.1, 5.2).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::abi::Generation;
use crate::abi::args::{IoeventfdArg, IrqfdArg, function};
use crate::errno::Errno;
use crate::host::event::Event;

/// An interrupt the program can raise.
#[derive(Clone)]
pub(crate) struct Irqfd {
    pub(crate) event: Arc<Event>,
    /// The LEVEL flag: asks for the bell's masks, which source-can-clear has to grant.
    pub(crate) level: bool,
}

/// A guest write that signals an event instead of leaving RUN.
#[derive(Clone)]
pub(crate) struct Ioeventfd {
    pub(crate) addr: u64,
    /// Width and value to match; `None` matches any write there (the driver drops `len` then).
    pub(crate) datamatch: Option<(u8, u64)>,
    pub(crate) event: Arc<Event>,
    arg: IoeventfdArg,
}

/// The functions of one VM.
pub(crate) struct Functions {
    generation: Generation,
    pub(crate) vcpus: BTreeSet<u32>,
    pub(crate) irqfds: BTreeMap<u32, Irqfd>,
    pub(crate) ioeventfds: Vec<Ioeventfd>,
}

/// The checks of an irqfd's argument that come before its descriptor is looked at.
pub(crate) fn check_irqfd(arg: &IrqfdArg) -> Result<(), Errno> {
    if arg.flags & !function::IRQFD_LEVEL != 0 { Err(Errno::EINVAL) } else { Ok(()) }
}

/// The checks of an ioeventfd's argument that come before its descriptor is looked at.
pub(crate) fn check_ioeventfd(arg: &IoeventfdArg) -> Result<(), Errno> {
    let matches = arg.flags & function::IOEVENTFD_DATAMATCH != 0;
    let valid = matches!(arg.len, 0 | 1 | 2 | 4 | 8)
        && arg.flags & !function::IOEVENTFD_DATAMATCH == 0
        && arg.addr.checked_add(u64::from(arg.len)).is_some()
        && !(matches && arg.len == 0);
    if valid { Ok(()) } else { Err(Errno::EINVAL) }
}

impl Ioeventfd {
    /// Whether both would answer some write: the driver keeps them in one ordered tree.
    fn conflicts(&self, other: &Ioeventfd) -> bool {
        self.addr == other.addr
            && match (self.datamatch, other.datamatch) {
                (Some(mine), Some(theirs)) => mine == theirs,
                _ => true,
            }
    }

    fn matches(&self, addr: u64, len: u8, data: u64) -> bool {
        self.addr == addr && self.datamatch.is_none_or(|wanted| wanted == (len, data))
    }
}

impl Functions {
    pub(crate) fn new(generation: Generation) -> Functions {
        Functions { generation, vcpus: BTreeSet::new(), irqfds: BTreeMap::new(), ioeventfds: Vec::new() }
    }

    pub(crate) fn add_vcpu(&mut self, id: u32) -> Result<(), Errno> {
        if self.vcpus.insert(id) { Ok(()) } else { Err(Errno::EEXIST) }
    }

    /// One irqfd per label (rule 5.1).
    pub(crate) fn add_irqfd(&mut self, arg: &IrqfdArg, event: Arc<Event>) -> Result<Irqfd, Errno> {
        if self.irqfds.contains_key(&arg.label) {
            return Err(Errno::EEXIST);
        }
        let irqfd = Irqfd { event, level: arg.flags & function::IRQFD_LEVEL != 0 };
        self.irqfds.insert(arg.label, irqfd.clone());
        Ok(irqfd)
    }

    pub(crate) fn add_ioeventfd(
        &mut self,
        arg: &IoeventfdArg,
        event: Arc<Event>,
    ) -> Result<Ioeventfd, Errno> {
        let matches = arg.flags & function::IOEVENTFD_DATAMATCH != 0;
        let datamatch = matches.then_some((arg.len as u8, arg.datamatch));
        let new = Ioeventfd { addr: arg.addr, datamatch, event, arg: *arg };
        if self.ioeventfds.iter().any(|known| known.conflicts(&new)) {
            return Err(Errno::EEXIST);
        }
        self.ioeventfds.push(new.clone());
        Ok(new)
    }

    pub(crate) fn remove_vcpu(&mut self, id: u32) -> Result<(), Errno> {
        if self.vcpus.remove(&id) { Ok(()) } else { Err(Errno::ENOENT) }
    }

    /// Only the label is compared.
    pub(crate) fn remove_irqfd(&mut self, label: u32) -> Result<Irqfd, Errno> {
        self.irqfds.remove(&label).ok_or(Errno::ENOENT)
    }

    /// A compares the address and removes all there; B and C compare everything but the descriptor.
    pub(crate) fn remove_ioeventfd(&mut self, arg: &IoeventfdArg) -> Result<Vec<Ioeventfd>, Errno> {
        let by_address = self.generation == Generation::A;
        let same = |known: &Ioeventfd| {
            known.addr == arg.addr
                && (by_address
                    || (known.arg.len == arg.len
                        && known.arg.flags == arg.flags
                        && (known.datamatch.is_none() || known.arg.datamatch == arg.datamatch)))
        };
        let removed: Vec<Ioeventfd> = self.ioeventfds.iter().filter(|known| same(known)).cloned().collect();
        if removed.is_empty() {
            return Err(Errno::ENOENT);
        }
        self.ioeventfds.retain(|known| !same(known));
        Ok(removed)
    }

    /// The event a guest write signals, if any.
    pub(crate) fn event_for_write(&self, addr: u64, len: u8, data: u64) -> Option<&Event> {
        self.ioeventfds.iter().find(|known| known.matches(addr, len, data)).map(|known| known.event.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Arc<Event> {
        Arc::new(Event::new().unwrap())
    }

    fn io(addr: u64, len: u32, datamatch: Option<u64>) -> IoeventfdArg {
        let flags = u32::from(datamatch.is_some());
        IoeventfdArg { addr, len, datamatch: datamatch.unwrap_or(0), fd: 0, flags }
    }

    #[test]
    fn a_label_has_one_irqfd() {
        let mut functions = Functions::new(Generation::A);
        let arg = IrqfdArg { fd: 0, label: 3, flags: 0 };
        assert!(functions.add_irqfd(&arg, event()).is_ok());
        assert_eq!(functions.add_irqfd(&arg, event()).err(), Some(Errno::EEXIST));
        assert!(functions.remove_irqfd(3).is_ok());
        assert_eq!(functions.remove_irqfd(3).err(), Some(Errno::ENOENT));
    }

    #[test]
    fn unknown_flags_are_invalid() {
        assert_eq!(check_irqfd(&IrqfdArg { fd: 0, label: 0, flags: 2 }), Err(Errno::EINVAL));
        let arg = IoeventfdArg { flags: 2, ..io(0, 4, None) };
        assert_eq!(check_ioeventfd(&arg), Err(Errno::EINVAL));
    }

    #[test]
    fn datamatch_needs_a_natural_length() {
        assert_eq!(check_ioeventfd(&io(0x50, 4, Some(1))), Ok(()));
        assert_eq!(check_ioeventfd(&io(0x50, 0, Some(1))), Err(Errno::EINVAL));
        assert_eq!(check_ioeventfd(&io(0x50, 3, None)), Err(Errno::EINVAL));
        assert_eq!(check_ioeventfd(&io(u64::MAX, 2, None)), Err(Errno::EINVAL));
    }

    #[test]
    fn writes_are_matched_by_width_and_value_or_by_address_alone() {
        let mut functions = Functions::new(Generation::C);
        functions.add_ioeventfd(&io(0x50, 4, Some(1)), event()).unwrap();
        functions.add_ioeventfd(&io(0x60, 4, None), event()).unwrap();
        assert!(functions.event_for_write(0x50, 4, 1).is_some());
        assert!(functions.event_for_write(0x50, 4, 2).is_none());
        assert!(functions.event_for_write(0x50, 2, 1).is_none());
        assert!(functions.event_for_write(0x60, 2, 9).is_some());
        assert!(functions.event_for_write(0x61, 4, 9).is_none());
    }

    #[test]
    fn an_unmatched_ioeventfd_conflicts_with_any_at_its_address() {
        let mut functions = Functions::new(Generation::C);
        functions.add_ioeventfd(&io(0x50, 4, Some(1)), event()).unwrap();
        assert!(functions.add_ioeventfd(&io(0x50, 4, Some(2)), event()).is_ok());
        assert!(functions.add_ioeventfd(&io(0x50, 2, Some(1)), event()).is_ok());
        assert_eq!(functions.add_ioeventfd(&io(0x50, 4, Some(1)), event()).err(), Some(Errno::EEXIST));
        assert_eq!(functions.add_ioeventfd(&io(0x50, 0, None), event()).err(), Some(Errno::EEXIST));
    }

    #[test]
    fn removal_compares_what_its_generation_compares() {
        for (generation, removed) in [(Generation::A, 2), (Generation::C, 1)] {
            let mut functions = Functions::new(generation);
            functions.add_ioeventfd(&io(0x50, 4, Some(1)), event()).unwrap();
            functions.add_ioeventfd(&io(0x50, 4, Some(2)), event()).unwrap();
            assert_eq!(functions.remove_ioeventfd(&io(0x50, 4, Some(1))).unwrap().len(), removed);
        }
        let mut functions = Functions::new(Generation::C);
        functions.add_ioeventfd(&io(0x50, 4, Some(1)), event()).unwrap();
        assert_eq!(functions.remove_ioeventfd(&io(0x50, 0, None)).err(), Some(Errno::ENOENT));
    }
}
