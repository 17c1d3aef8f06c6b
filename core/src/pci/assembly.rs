//! What a function's configuration space holds after power-on, and where its BARs are then.

use std::ops::Range;

use super::bars::BarLayout;
use super::config::{ConfigError, ConfigSpace, SIZE};
use super::function::{AccessWindow, FunctionSpec};
use super::msix;

/// The next free place for a BAR, which is aligned to its size.
pub(super) fn place(size: u32, window: &Range<u64>, free: &mut u64) -> Result<u32, String> {
    let base = free.next_multiple_of(size.into());
    let end = base.saturating_add(size.into());
    let address = u32::try_from(base).ok().filter(|_| end <= window.end);
    let address = address.ok_or_else(|| {
        let left = window.end.saturating_sub(*free);
        format!("its {size:#x} bytes of registers do not fit into the {left:#x} bytes left for PCI devices")
    })?;
    *free = end;
    Ok(address)
}

/// Configuration space, the place of the MSI-X capability, and the access window with its offsets in the space.
pub(super) type Configuration = (ConfigSpace, Option<usize>, Option<AccessWindow>);

/// Configuration space of a function after power-on.
pub(super) fn configuration(
    spec: &FunctionSpec,
    layouts: &[BarLayout],
    addresses: &[u32],
) -> Result<Configuration, ConfigError> {
    let mut config = ConfigSpace::new(&spec.identity, spec.line.is_some());
    for (bar, address) in layouts.iter().zip(addresses) {
        config.add_bar(bar.index, bar.size, *address)?;
    }
    let mut places = Vec::new();
    for capability in &spec.capabilities {
        places.push(config.add_capability(capability.id, &capability.body, &capability.writable)?);
    }
    let structures = layouts.iter().find(|bar| !bar.table.is_empty());
    let msix_at = structures.map(|bar| add_msix(&mut config, spec.vectors.len(), bar)).transpose()?;
    let placed = |window: AccessWindow| {
        let at = *places.get(window.capability)?;
        let inside = |offset| Some(at + offset).filter(|offset| offset + 4 <= SIZE);
        Some(AccessWindow {
            capability: at,
            bar: inside(window.bar)?,
            offset: inside(window.offset)?,
            length: inside(window.length)?,
            data: inside(window.data)?,
        })
    };
    Ok((config, msix_at, spec.access_window.and_then(placed)))
}

/// Adds the MSI-X capability; returns its offset.
fn add_msix(config: &mut ConfigSpace, vectors: usize, bar: &BarLayout) -> Result<usize, ConfigError> {
    let mut body = Vec::new();
    // The number of vectors less one; a table has at least one.
    let last_vector = (vectors.min(msix::MAX_VECTORS) as u16).saturating_sub(1);
    body.extend_from_slice(&last_vector.to_le_bytes());
    // Offsets in a BAR that fits 32 bits, of which the low three are free for the number of the BAR.
    for structure in [&bar.table, &bar.pending] {
        body.extend_from_slice(&(structure.start as u32 | bar.index as u32).to_le_bytes());
    }
    let control = (msix::CONTROL_ENABLE | msix::CONTROL_FUNCTION_MASK).to_le_bytes();
    config.add_capability(msix::CAPABILITY, &body, &control)
}
