//! The devices of a machine: from the command line to register windows, interrupt lines and doorbells.

use std::collections::BTreeSet;
use std::sync::Arc;

use gvmm_plugin_api::fdt::FdtNode;
use gvmm_plugin_api::host::Instance;
use gvmm_plugin_api::interrupt::Interrupt;
use gvmm_plugin_api::metrics::Metric;
use gvmm_plugin_api::mmio::MmioDevice;
use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::pci::PciDevice;
use gvmm_plugin_api::virtio::VirtioDevice;
use vmm_sys_util::eventfd::EventFd;

use super::Protection;
use super::cmdline::CmdlineRule;
use super::layout::Allocator;
use super::pci::PciBuilder;
use super::transport::Transport;
use crate::bus::{AccessCount, Bus, DeviceWindow};
use crate::console::ConsoleHub;
use crate::device_tree::PlacedNode;
use crate::eventfd;
use crate::hypervisor::{DoorbellWrite, InterruptLine, Wiring};
use crate::pci::host::PciHost;
use crate::plugin::argument::DeviceArgument;
use crate::plugin::host::DeviceHost;
use crate::plugin::profile::{self, DefaultDevice};
use crate::plugin::provider::Provider;
use crate::virtio::VirtioFunction;
use crate::virtio::mmio::{LineRoute, MmioTransport, QUEUE_NOTIFY, WINDOW_SIZE};

/// A device that is wanted: its options are checked, none of its code has run.
pub struct WantedDevice {
    id: String,
    provider: Provider,
    values: Values,
    transport: Transport,
    cmdline: Option<CmdlineRule>,
}

/// Finds the plugins of the command line and, unless told otherwise, of the default profile. Virtio devices that do not
/// choose are on the `usual` transport.
pub fn wanted(
    arguments: &[DeviceArgument],
    defaults: bool,
    usual: Transport,
) -> Result<Vec<WantedDevice>, String> {
    let mut found = Vec::new();
    for argument in arguments {
        found.push((argument.clone(), Provider::find(argument)?, None));
    }
    if defaults {
        let mut machine = Vec::new();
        for DefaultDevice { argument, cmdline } in profile::default_devices()? {
            let provider = Provider::find(&argument)?;
            // A device of the command line takes the place of the default one of its kind.
            if !found.iter().any(|(_, other, _)| other.manifest.id == provider.manifest.id) {
                machine.push((argument, provider, cmdline));
            }
        }
        machine.append(&mut found);
        found = machine;
    }
    let mut ids: BTreeSet<String> = BTreeSet::new();
    for id in found.iter().filter_map(|(argument, ..)| argument.id.as_ref()) {
        if !ids.insert(id.clone()) {
            return Err(format!("device id '{id}' is used twice: give each device an id of its own"));
        }
    }
    let mut wanted = Vec::new();
    for (mut argument, provider, cmdline) in found {
        let transport = Transport::take(&mut argument, &provider.manifest.kind, &provider.manifest.name)?;
        let transport = transport.unwrap_or(usual);
        let values = provider.manifest.check(argument.pairs()).map_err(|e| e.to_string())?;
        let id = argument.id.clone().unwrap_or_else(|| free_id(&mut ids, &provider.manifest.name));
        wanted.push(WantedDevice { id, provider, values, transport, cmdline });
    }
    Ok(wanted)
}

/// `name`, or with the smallest number behind it that makes it new.
fn free_id(ids: &mut BTreeSet<String>, name: &str) -> String {
    let mut id = name.to_owned();
    let mut number = 1;
    while !ids.insert(id.clone()) {
        number += 1;
        id = format!("{name}{number}");
    }
    id
}

/// A device in the machine.
struct Plugged {
    id: String,
    plugin: String,
    host: Arc<DeviceHost>,
    kind: PluggedKind,
}

enum PluggedKind {
    Mmio(Arc<dyn MmioDevice>),
    Virtio(Arc<VirtioFunction>),
    Pci(Arc<dyn PciDevice>),
}

/// What a device did, for statistics.
#[derive(Debug, Clone)]
pub struct DeviceReport {
    /// Id of the device.
    pub id: String,
    /// Name of its plugin.
    pub plugin: String,
    /// Whether it failed.
    pub failed: bool,
    /// Its own counters.
    pub metrics: Vec<Metric>,
}

/// All devices of a machine, plugged in. They outlive a reset of the VM.
#[derive(Default)]
pub struct Devices {
    plugged: Vec<Plugged>,
    /// Whether other processes serve devices and have to map guest memory.
    pub share_memory: bool,
    /// Register accesses go here.
    pub bus: Bus,
    /// Nodes for the device tree.
    pub nodes: Vec<PlacedNode>,
    /// Interrupt lines.
    pub lines: Vec<InterruptLine>,
    /// Writes that the hypervisor turns into kicks.
    pub doorbells: Vec<DoorbellWrite>,
    /// What the devices add to the kernel command line.
    pub cmdline: Vec<CmdlineRule>,
    /// The PCI host, if a device is on it.
    pub pci: Option<Arc<PciHost>>,
    consoles: Option<Arc<ConsoleHub>>,
}

impl Devices {
    /// Loads the plugins, makes the devices and gives each its place. Errors name the device.
    pub fn plug(
        wanted: &[WantedDevice],
        protection: Protection,
        consoles: &Arc<ConsoleHub>,
        max_level: u8,
    ) -> Result<Self, String> {
        let mut devices = Self { consoles: Some(consoles.clone()), ..Self::default() };
        let mut map = Allocator::default();
        let mut pci = PciBuilder::default();
        for want in wanted {
            let host = Arc::new(DeviceHost::new(&want.id, consoles.clone()));
            let instance = want.provider.create(&want.id, &want.values, host.clone(), max_level)?;
            devices.share_memory |= want.provider.shares_memory();
            let named = |error: String| format!("device {}: {error}", want.id);
            let kind = match instance {
                Instance::Mmio(device) => devices.plug_mmio(&want.id, device, &mut map).map_err(named)?,
                Instance::Virtio(device) => {
                    let (id, map) = (&want.id, &mut map);
                    let plugged = match want.transport {
                        Transport::Mmio => devices.plug_virtio(id, device, &host, map),
                        Transport::Pci => devices.plug_virtio_pci(id, device, &host, map, &mut pci),
                    };
                    plugged.map_err(named)?
                }
                Instance::Pci(device) => {
                    devices.plug_pci(&want.id, device, &mut map, &mut pci).map_err(named)?
                }
            };
            let rule = want.cmdline.clone();
            devices.cmdline.extend(match kind {
                PluggedKind::Virtio(_) => {
                    rule.map(|rule| rule.for_kernels_with(&want.transport.drivers(protection)))
                }
                PluggedKind::Mmio(_) | PluggedKind::Pci(_) => rule,
            });
            devices.plugged.push(Plugged {
                id: want.id.clone(),
                plugin: want.provider.manifest.name.clone(),
                host,
                kind,
            });
        }
        devices.pci = pci.finish(&mut map, &mut devices.bus)?;
        Ok(devices)
    }

    fn plug_mmio(
        &mut self,
        id: &str,
        device: Arc<dyn MmioDevice>,
        map: &mut Allocator,
    ) -> Result<PluggedKind, String> {
        let layout = device.layout();
        let mut node = PlacedNode {
            node: device.node(),
            below: device.nodes_below(),
            beside: device.nodes_beside(),
            ..PlacedNode::default()
        };
        let mut lines = Vec::new();
        for _ in 0..layout.lines {
            let (spi, event) = self.line(id, map)?;
            node.spis.push(spi);
            lines.push(Interrupt::new(eventfd::share(&event).map_err(|e| e.to_string())?));
        }
        for (window, &size) in (0..).zip(&layout.windows) {
            let (base, size) = map.window(size)?;
            node.windows.push((base, size));
            self.bus.insert(base, size, id, Arc::new(DeviceWindow { device: device.clone(), window }));
        }
        device.start(lines)?;
        self.nodes.push(node);
        Ok(PluggedKind::Mmio(device))
    }

    fn plug_virtio(
        &mut self,
        id: &str,
        device: Arc<dyn VirtioDevice>,
        host: &DeviceHost,
        map: &mut Allocator,
    ) -> Result<PluggedKind, String> {
        let (spi, event) = self.line(id, map)?;
        let (base, size) = map.window(WINDOW_SIZE)?;
        let function = VirtioFunction::new(id, device, Box::new(LineRoute(event)));
        let function = Arc::new(function.map_err(|e| format!("cannot make an eventfd: {e}"))?);
        host.connect(&function);
        for (index, kick) in (0..).zip(function.kicks()) {
            self.doorbells.push(DoorbellWrite {
                address: base + QUEUE_NOTIFY,
                datamatch: Some((index, 4)),
                eventfd: kick.clone(),
                device: id.to_owned(),
            });
        }
        let node = FdtNode::new("virtio_mmio", &["virtio,mmio"])
            .with("dma-coherent", gvmm_plugin_api::fdt::FdtValue::Empty);
        let (windows, spis) = (vec![(base, size)], vec![spi]);
        self.nodes.push(PlacedNode { node, windows, spis, ..PlacedNode::default() });
        self.bus.insert(base, size, id, Arc::new(MmioTransport::new(function.clone())));
        Ok(PluggedKind::Virtio(function))
    }

    fn plug_virtio_pci(
        &mut self,
        id: &str,
        device: Arc<dyn VirtioDevice>,
        host: &DeviceHost,
        map: &mut Allocator,
        pci: &mut PciBuilder,
    ) -> Result<PluggedKind, String> {
        let (spi, eventfd) = self.line(id, map)?;
        let line = InterruptLine { spi, eventfd, device: id.to_owned() };
        Ok(PluggedKind::Virtio(pci.add_virtio(id, device, host, line)?))
    }

    fn plug_pci(
        &mut self,
        id: &str,
        device: Arc<dyn PciDevice>,
        map: &mut Allocator,
        pci: &mut PciBuilder,
    ) -> Result<PluggedKind, String> {
        let layout = device.layout();
        layout.check()?;
        let mut line = None;
        if layout.line {
            let (spi, eventfd) = self.line(id, map)?;
            line = Some(InterruptLine { spi, eventfd, device: id.to_owned() });
        }
        pci.add_plugged(id, device.clone(), line)?;
        Ok(PluggedKind::Pci(device))
    }

    fn line(&mut self, id: &str, map: &mut Allocator) -> Result<(u32, Arc<EventFd>), String> {
        let spi = map.spi()?;
        let event = Arc::new(eventfd::new().map_err(|e| format!("cannot make an eventfd: {e}"))?);
        self.lines.push(InterruptLine { spi, eventfd: event.clone(), device: id.to_owned() });
        Ok((spi, event))
    }

    /// Gives the devices the memory of a VM that is about to start.
    pub fn attach(&self, memory: &crate::memory::SharedMemory) {
        for function in self.functions() {
            function.attach_memory(memory.clone());
        }
    }

    /// Gives the devices the wiring of a VM that has started. No vCPU runs.
    pub fn wire(&self, wiring: &Arc<dyn Wiring>) {
        if let Some(pci) = &self.pci {
            pci.attach(wiring);
        }
    }

    /// Brings every device back to the state after power-on and takes guest memory from it. No vCPU runs.
    pub fn detach(&self) {
        for device in &self.plugged {
            match &device.kind {
                PluggedKind::Mmio(mmio) => mmio.reset(),
                PluggedKind::Virtio(function) => function.detach(),
                // Its function does.
                PluggedKind::Pci(_) => {}
            }
        }
        if let Some(pci) = &self.pci {
            pci.detach();
        }
    }

    /// Register accesses so far that reached user space.
    pub fn accesses(&self) -> Vec<AccessCount> {
        let on_pci = self.pci.iter().flat_map(|pci| pci.counts());
        self.bus.counts().into_iter().chain(on_pci).collect()
    }

    /// What each device did.
    pub fn reports(&self) -> Vec<DeviceReport> {
        let report = |device: &Plugged| DeviceReport {
            id: device.id.clone(),
            plugin: device.plugin.clone(),
            failed: device.host.has_failed(),
            metrics: match &device.kind {
                PluggedKind::Mmio(mmio) => mmio.metrics(),
                PluggedKind::Virtio(function) => function.device().metrics(),
                PluggedKind::Pci(device) => device.metrics(),
            },
        };
        self.plugged.iter().map(report).collect()
    }

    /// Whether a device works on guest memory.
    pub fn use_memory(&self) -> bool {
        self.pci.is_some() || self.functions().next().is_some()
    }

    /// Whether there are consoles on standard output and none of them has shown anything so far.
    pub fn are_silent(&self) -> bool {
        self.consoles.as_ref().is_some_and(|consoles| consoles.is_silent())
    }

    /// Whether a device has failed at any time.
    pub fn any_failed(&self) -> bool {
        self.plugged.iter().any(|device| device.host.has_failed())
    }

    fn functions(&self) -> impl Iterator<Item = &Arc<VirtioFunction>> {
        self.plugged.iter().filter_map(|device| match &device.kind {
            PluggedKind::Virtio(function) => Some(function),
            PluggedKind::Mmio(_) | PluggedKind::Pci(_) => None,
        })
    }
}
