//! Device trees as a VMM makes them, by a writer of its own.

use vm_fdt::{FdtWriter, FdtWriterResult};

/// What to build a tree for.
#[derive(Clone)]
pub(crate) struct Tree {
    pub(crate) vcpus: u32,
    /// Doorbells: label and SPI.
    pub(crate) bells: Vec<(u32, u32)>,
    /// `/hypervisor`, which nobody may bring.
    pub(crate) hypervisor: bool,
    /// Shared window: label, address, size.
    pub(crate) window: Option<(u32, u64, u64)>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { vcpus: 1, bells: vec![(1, 1), (2, 2)], hypervisor: false, window: None }
    }
}

impl Tree {
    pub(crate) fn build(&self) -> Vec<u8> {
        self.write().unwrap()
    }

    fn write(&self) -> FdtWriterResult<Vec<u8>> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("interrupt-parent", 1)?;
        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", "quiet")?;
        fdt.end_node(chosen)?;
        self.config(&mut fdt)?;
        self.cpus(&mut fdt)?;
        let gic = fdt.begin_node("intc")?;
        fdt.property_string("compatible", "arm,gic-v3")?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 3)?;
        fdt.property_u32("phandle", 1)?;
        let size = 0x2_0000 * u64::from(self.vcpus);
        fdt.property_array_u64("reg", &[0x3fff_0000, 0x1_0000, 0x3fff_0000 - size, size])?;
        fdt.end_node(gic)?;
        let psci = fdt.begin_node("psci")?;
        fdt.property_string("compatible", "arm,psci-1.0")?;
        fdt.end_node(psci)?;
        if self.hypervisor {
            let node = fdt.begin_node("hypervisor")?;
            fdt.end_node(node)?;
        }
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn config(&self, fdt: &mut FdtWriter) -> FdtWriterResult<()> {
        let config = fdt.begin_node("gunyah-vm-config")?;
        fdt.property_string("image-name", "test")?;
        let memory = fdt.begin_node("memory")?;
        fdt.property_u64("base-address", 0x8000_0000)?;
        fdt.end_node(memory)?;
        let vcpus = fdt.begin_node("vcpus")?;
        fdt.property_string("affinity", "proxy")?;
        fdt.end_node(vcpus)?;
        let vdevices = fdt.begin_node("vdevices")?;
        for (label, spi) in &self.bells {
            let bell = fdt.begin_node(&format!("bell-{label:x}"))?;
            fdt.property_string("vdevice-type", "doorbell")?;
            fdt.property_string("generate", &format!("/hypervisor/bell-{label:x}"))?;
            fdt.property_u32("label", *label)?;
            fdt.property_null("peer-default")?;
            fdt.property_null("source-can-clear")?;
            fdt.property_array_u32("interrupts", &[0, *spi, 1])?;
            fdt.end_node(bell)?;
        }
        if let Some((label, base, _)) = self.window {
            let window = fdt.begin_node("swiotlb-shm")?;
            fdt.property_string("vdevice-type", "shm")?;
            fdt.property_null("peer-default")?;
            let memory = fdt.begin_node("memory")?;
            fdt.property_null("optional")?;
            fdt.property_u32("label", label)?;
            fdt.property_u64("base", base)?;
            fdt.end_node(memory)?;
            fdt.end_node(window)?;
        }
        fdt.end_node(vdevices)?;
        fdt.end_node(config)?;
        if let Some((_, base, size)) = self.window {
            let reserved = fdt.begin_node("reserved-memory")?;
            fdt.property_u32("#address-cells", 2)?;
            fdt.property_u32("#size-cells", 2)?;
            let pool = fdt.begin_node("pool")?;
            fdt.property_string("compatible", "restricted-dma-pool")?;
            fdt.property_array_u64("reg", &[base, size])?;
            fdt.end_node(pool)?;
            fdt.end_node(reserved)?;
        }
        Ok(())
    }

    fn cpus(&self, fdt: &mut FdtWriter) -> FdtWriterResult<()> {
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_u32("#size-cells", 0)?;
        for id in 0..self.vcpus {
            let cpu = fdt.begin_node(&format!("cpu@{id}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_string("enable-method", "psci")?;
            fdt.property_u32("reg", id)?;
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)
    }
}
