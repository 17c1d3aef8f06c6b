//! Registers a vCPU starts with (rule 1.2, 3.6).

use std::collections::BTreeMap;

use crate::errno::Errno;

const SET_X: u32 = 0;
const SET_PC: u32 = 1;
const SET_SP: u32 = 2;
const PC: u32 = SET_PC << 8;

/// Registers given by `SET_BOOT_CONTEXT`, by number: set in bits 15..8, index in bits 7..0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BootContext {
    registers: BTreeMap<u32, u64>,
}

/// What the boot vCPU's registers hold at its first instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BootState {
    pub(crate) pc: u64,
    /// X0, X1, ... as far as anything sets them.
    pub(crate) x: BTreeMap<u32, u64>,
}

pub(crate) fn check_register(register: u32) -> Result<(), Errno> {
    let (set, index) = (register >> 8, register & 0xff);
    match (set, index) {
        (SET_X, 0..=31) | (SET_PC, 0) | (SET_SP, 0..=2) => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

impl BootContext {
    pub(crate) fn set(&mut self, register: u32, value: u64) {
        self.registers.insert(register, value);
    }

    pub(crate) fn pc(&self) -> Option<u64> {
        self.registers.get(&PC).copied()
    }

    /// X0 is the tree unless the context says otherwise.
    pub(crate) fn state(&self, entry: u64, tree: u64) -> BootState {
        let mut x = BTreeMap::from([(0, tree)]);
        x.extend(self.registers.iter().filter(|(register, _)| *register >> 8 == SET_X));
        BootState { pc: self.pc().unwrap_or(entry), x }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_outside_the_sets_are_invalid() {
        for good in [0, 31, 0x100, 0x200, 0x202] {
            assert_eq!(check_register(good), Ok(()), "{good:#x}");
        }
        for bad in [32, 0x101, 0x203, 0x300, 0x1_0000] {
            assert_eq!(check_register(bad), Err(Errno::EINVAL), "{bad:#x}");
        }
    }

    #[test]
    fn the_context_wins_over_the_defaults() {
        let mut context = BootContext::default();
        assert_eq!(context.state(0x8000_0000, 0x9000_0000).pc, 0x8000_0000);
        context.set(0x100, 0x8020_0000);
        context.set(1, 7);
        let state = context.state(0x8000_0000, 0x9000_0000);
        assert_eq!(state.pc, 0x8020_0000);
        assert_eq!(state.x, BTreeMap::from([(0, 0x9000_0000), (1, 7)]));
    }
}
