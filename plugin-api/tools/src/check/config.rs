//! Configuration space.

use std::sync::Arc;

use gvmm_plugin_api::virtio::VirtioDevice;

use super::report::Verdict;
use super::subject::Subject;

/// Widths of accesses that transports pass on.
const WIDTHS: [usize; 4] = [1, 2, 4, 8];

pub(super) fn not_for_mmio() -> Verdict {
    Verdict::Skip("a device with registers has no queues and no virtio configuration".to_owned())
}

pub(super) fn config(subject: &Subject) -> Result<Verdict, String> {
    let Some((host, device)) = subject.virtio()? else { return Ok(not_for_mmio()) };
    let size = device.traits().config_size as usize;
    if size == 0 {
        return Ok(Verdict::Skip("the device has no configuration space".to_owned()));
    }
    let whole = read_all(&device);
    for (offset, width) in accesses(size) {
        let mut part = vec![0; width];
        device.read_config(offset as u32, &mut part);
        // What the device changes by itself says nothing.
        if part != whole[offset..offset + width] && read_all(&device) == whole {
            return Err(format!(
                "{width} bytes at offset {offset} are {part:02x?}, as part of the whole {whole:02x?}"
            ));
        }
    }
    let mut random = subject.random();
    for (offset, width) in accesses(size) {
        device.write_config(offset as u32, &random.bytes(width));
        device.write_config(offset as u32, &vec![0xff; width]);
    }
    read_all(&device);
    host.no_panic()?;
    Ok(Verdict::Pass)
}

fn accesses(size: usize) -> impl Iterator<Item = (usize, usize)> {
    let all = (0..size).flat_map(|offset| WIDTHS.map(|width| (offset, width)));
    all.filter(move |(offset, width)| offset + width <= size)
}

/// The whole of configuration space.
pub(super) fn read_all(device: &Arc<dyn VirtioDevice>) -> Vec<u8> {
    let mut data = vec![0; device.traits().config_size as usize];
    device.read_config(0, &mut data);
    data
}
