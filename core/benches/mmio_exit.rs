//! What a register access costs on its way from the accelerator to a device and back.
//!
//! Compare within one run: `cargo bench -p gvmm --bench mmio_exit`. All devices answer a read with a constant.
//! "exit" begins with what KVM's run call returns, "Gunyah exit" with the run page that Gunyah's driver filled, and
//! ends with the answer in it. The run calls themselves are the hypervisor's.

#![allow(missing_docs, clippy::expect_used, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use gvmm::bus::{Bus, DeviceWindow};
use gvmm::hypervisor::Exit;
use gvmm::hypervisor::gunyah::scripted::ScriptedVcpu;
use gvmm_plugin_api::fdt::FdtNode;
use gvmm_plugin_api::host::{Instance, Library};
use gvmm_plugin_api::interrupt::Interrupt;
use gvmm_plugin_api::mmio::{AccessError, MmioDevice, MmioLayout, Width};
use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::testing::FakeHost;

/// A device in this crate, to compare a plugin with.
struct Constant;

impl MmioDevice for Constant {
    fn layout(&self) -> MmioLayout {
        MmioLayout { windows: vec![0x1000], lines: 0 }
    }

    fn node(&self) -> FdtNode {
        FdtNode::default()
    }

    fn start(&self, _: Vec<Interrupt>) -> Result<(), String> {
        Ok(())
    }

    fn read(&self, _: u32, offset: u64, _: Width) -> Result<u64, AccessError> {
        if black_box(offset) == PERIPHERAL_ID { Ok(0x11) } else { Err(AccessError::NoRegister) }
    }

    fn write(&self, _: u32, _: u64, _: Width, _: u64) -> Result<(), AccessError> {
        Ok(())
    }

    fn reset(&self) {}
}

/// UARTPeriphID0 of the PL011 (Arm DDI 0183): a constant.
const PERIPHERAL_ID: u64 = 0xfe0;
const BASE: u64 = 0x0900_0000;
/// What is read: the register of the sixth device.
const REGISTER: u64 = BASE + 0x5000 + PERIPHERAL_ID;

fn plugin() -> Arc<dyn MmioDevice> {
    let library = Library::load(&gvmm_built::release_plugin("pl011"), 0).expect("the plugin loads");
    let host = Arc::new(FakeHost::default());
    let _console = host.plug_console();
    let values: Values = library.manifest().check([]).expect("no option is required");
    match library.create(&values, host).expect("a device") {
        Instance::Mmio(device) => {
            let line = gvmm_plugin_api::interrupt::Event::new().expect("an eventfd");
            device.start(vec![Interrupt::new(line)]).expect("the device starts");
            device
        }
        Instance::Virtio(_) | Instance::Pci(_) => unreachable!("the PL011 is an MMIO device"),
    }
}

/// A machine of a dozen devices.
fn machine(name: &str, device: &Arc<dyn MmioDevice>) -> Bus {
    let mut bus = Bus::default();
    for index in 0..12 {
        let window = DeviceWindow { device: device.clone(), window: 0 };
        bus.insert(BASE + index * 0x1000, 0x1000, name, Arc::new(window));
    }
    bus
}

/// Serves an exit as a vCPU thread does.
fn serve(bus: &Bus, exit: Exit<'_>) {
    match exit {
        Exit::MmioRead { address, data } => bus.read(address, data),
        Exit::MmioWrite { address, data } => bus.write(address, data),
        _ => {}
    }
}

fn bench(criterion: &mut Criterion) {
    let devices: [(&str, Arc<dyn MmioDevice>); 2] = [("in-crate", Arc::new(Constant)), ("plugin", plugin())];
    let mut call = criterion.benchmark_group("device call");
    for (name, device) in &devices {
        call.bench_function(*name, |b| b.iter(|| device.read(0, black_box(PERIPHERAL_ID), Width::Word)));
    }
    call.finish();
    let mut exit = criterion.benchmark_group("exit");
    for (name, device) in &devices {
        let bus = machine(name, device);
        exit.bench_function(*name, |b| {
            b.iter(|| {
                let mut data = [0; 4];
                serve(&bus, Exit::MmioRead { address: black_box(REGISTER), data: &mut data });
                data
            });
        });
    }
    exit.finish();
    let mut gunyah_exit = criterion.benchmark_group("Gunyah exit");
    for (name, device) in &devices {
        let bus = machine(name, device);
        let mut vcpu = ScriptedVcpu::new().expect("a page of memory");
        gunyah_exit.bench_function(*name, |b| {
            b.iter(|| {
                serve(&bus, vcpu.guest_reads(black_box(REGISTER), 4).expect("an exit"));
                vcpu.answer()
            });
        });
    }
    gunyah_exit.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
