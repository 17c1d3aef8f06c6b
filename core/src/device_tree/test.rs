//! Trees of small machines, read back.

use gvmm_plugin_api::fdt::{ExtraNode, FdtNode, FdtValue};

use super::reader::Node;
use super::*;
use crate::hypervisor::plan::{Boot, GicLayout};
use crate::hypervisor::{Error as HypervisorError, StartedVm};
use crate::memory::{GuestRam, MemoryRange, RAM_BASE, RegionKind};

const MIB: u64 = 1 << 20;

/// An accelerator that adds one node, and so many bytes for an interrupt.
struct Fake {
    limit: usize,
}

const INTERRUPT: usize = 100;

impl Accelerator for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn probe(&self) -> Result<(), HypervisorError> {
        Ok(())
    }

    fn device_tree_limit(&self) -> usize {
        self.limit
    }

    fn device_tree_growth(&self, plan: &VmPlan<'_>) -> usize {
        plan.spis().count() * INTERRUPT
    }

    fn describe(&self, plan: &VmPlan<'_>, fdt: &mut FdtWriter) -> Result<(), HypervisorError> {
        let node = fdt.begin_node("accelerator")?;
        fdt.property_string("vm", plan.name)?;
        fdt.end_node(node)?;
        Ok(())
    }

    fn start(&self, _: &VmPlan<'_>, _: &GuestRam) -> Result<StartedVm, HypervisorError> {
        Err(HypervisorError::Unavailable("nothing runs here".to_owned()))
    }
}

struct Bench {
    memory: Vec<MemoryRange>,
    vcpus: u32,
    cmdline: String,
    initrd: Option<Initrd>,
    nodes: Vec<PlacedNode>,
    pci: Option<PciNode>,
    seed: Option<Seed>,
    message_spis: std::ops::Range<u32>,
    limit: usize,
}

impl Default for Bench {
    fn default() -> Self {
        let memory = vec![MemoryRange { base: RAM_BASE, size: 256 * MIB, kind: RegionKind::Shared }];
        let (cmdline, nodes) = ("quiet".to_owned(), vec![console(), disk()]);
        let (initrd, pci, seed) = (None, None, None);
        Self { memory, vcpus: 2, cmdline, initrd, nodes, pci, seed, message_spis: 0..0, limit: 10 * 1024 }
    }
}

fn console() -> PlacedNode {
    let node = FdtNode::new("serial", &["arm,pl011", "arm,primecell"])
        .with("clocks", FdtValue::FixedClocks(vec![24_000_000, 24_000_000]))
        .with("clock-names", FdtValue::Strings(vec!["uartclk".to_owned(), "apb_pclk".to_owned()]))
        .as_console();
    PlacedNode { node, windows: vec![(0x900_0000, 0x1000)], spis: vec![1], ..PlacedNode::default() }
}

fn disk() -> PlacedNode {
    let node = FdtNode::new("virtio_mmio", &["virtio,mmio"]).with("dma-coherent", FdtValue::Empty);
    PlacedNode { node, windows: vec![(0x900_1000, 0x1000)], spis: vec![2], ..PlacedNode::default() }
}

fn with_property(name: &str, value: FdtValue) -> PlacedNode {
    let mut placed = console();
    placed.node = FdtNode::new("thing", &["test,thing"]).with(name, value);
    placed
}

impl Bench {
    fn build(&self) -> Result<Vec<u8>, Error> {
        let plan = VmPlan {
            name: "guest",
            vcpus: self.vcpus,
            memory: &self.memory,
            boot: Boot { entry: RAM_BASE, dtb_address: RAM_BASE + 32 * MIB, dtb_size: 0x1_0000 },
            firmware: None,
            gic: GicLayout { distributor: 0x3fff_0000, redistributors: 0x3ffb_0000 },
            lines: &[],
            message_spis: self.message_spis.clone(),
            doorbells: &[],
        };
        let description = Description {
            plan: &plan,
            cmdline: &self.cmdline,
            initrd: self.initrd,
            nodes: &self.nodes,
            pci: self.pci.clone(),
            seed: self.seed.clone(),
        };
        build(&description, &Fake { limit: self.limit })
    }

    fn tree(&self) -> Node {
        Node::parse(&self.build().unwrap())
    }

    fn error(&self) -> String {
        self.build().unwrap_err().to_string()
    }
}

#[test]
fn begins_with_chosen_and_its_own_cells() {
    let tree = Bench::default().tree();
    assert_eq!(tree.children[0].name, "chosen");
    for node in [&tree, tree.at("/chosen")] {
        assert_eq!((node.cells("#address-cells"), node.cells("#size-cells")), (vec![2], vec![2]));
    }
    assert_eq!(tree.at("/chosen").text("bootargs"), "quiet");
    assert_eq!(tree.at("/chosen").text("stdout-path"), "/serial@9000000");
    assert_eq!(tree.cells("interrupt-parent"), tree.at("/intc").cells("phandle"));
}

#[test]
fn has_a_size_that_is_a_multiple_of_8_whatever_the_strings() {
    for length in 0..8 {
        let bench = Bench {
            nodes: vec![with_property(&"x".repeat(length + 1), FdtValue::Empty)],
            ..Bench::default()
        };
        assert_eq!(bench.build().unwrap().len() % 8, 0);
        bench.tree();
    }
}

#[test]
fn names_the_initrd_by_start_and_end() {
    let bench = Bench { initrd: Some(Initrd { address: 0x8200_0000, size: 0x1234 }), ..Bench::default() };
    let tree = bench.tree();
    assert_eq!(tree.at("/chosen").longs("linux,initrd-start"), [0x8200_0000]);
    assert_eq!(tree.at("/chosen").longs("linux,initrd-end"), [0x8200_1234]);
}

#[test]
fn is_the_same_each_time_unless_randomness_is_asked_for() {
    let plain = Bench::default();
    assert_eq!(plain.build().unwrap(), plain.build().unwrap());
    assert!(!plain.tree().at("/chosen").properties.contains_key("kaslr-seed"));
    let seeded = || Bench { seed: Some(Seed::from_host().unwrap()), ..Bench::default() }.tree();
    let (one, other) = (seeded(), seeded());
    for (property, length) in [("kaslr-seed", 8), ("rng-seed", 64)] {
        assert_eq!(one.at("/chosen").bytes(property).len(), length);
        assert_ne!(one.at("/chosen").bytes(property), other.at("/chosen").bytes(property));
    }
}

#[test]
fn describes_memory_without_a_unit_address() {
    let tree = Bench::default().tree();
    assert_eq!(tree.at("/memory").text("device_type"), "memory");
    assert_eq!(tree.at("/memory").longs("reg"), [RAM_BASE, 256 * MIB]);
    assert!(!tree.has("reserved-memory"));
}

#[test]
fn leads_the_buffers_of_a_protected_guest_into_the_window() {
    let lent = MemoryRange { base: RAM_BASE, size: 192 * MIB, kind: RegionKind::Lent };
    let window = MemoryRange { base: RAM_BASE + 192 * MIB, size: 64 * MIB, kind: RegionKind::Shared };
    let firmware = MemoryRange { base: 0x7fc0_0000, size: 4 * MIB, kind: RegionKind::Lent };
    let tree = Bench { memory: vec![firmware, lent, window], ..Bench::default() }.tree();
    assert_eq!(tree.at("/memory").longs("reg"), [RAM_BASE, 256 * MIB]);
    let pool = tree.at("/reserved-memory/restricted-dma-pool@8c000000");
    assert_eq!(pool.longs("reg"), [window.base, window.size]);
    assert_eq!(tree.at("/virtio_mmio@9001000").bytes("memory-region"), pool.bytes("phandle"));
    assert!(!tree.at("/serial@9000000").properties.contains_key("memory-region"));
}

#[test]
fn gives_each_vcpu_a_node_by_its_affinity() {
    let tree = Bench { vcpus: 18, ..Bench::default() }.tree();
    let cpus = tree.at("/cpus");
    let affinities: Vec<u32> = cpus.children.iter().flat_map(|cpu| cpu.cells("reg")).collect();
    let expected: Vec<u32> = (0..16).chain([0x100, 0x101]).collect();
    assert_eq!(affinities, expected);
    assert_eq!(tree.at("/cpus/cpu@101").text("enable-method"), "psci");
    assert_eq!(tree.at("/psci").text("method"), "hvc");
}

#[test]
fn describes_the_interrupt_controller_and_the_timer() {
    let tree = Bench::default().tree();
    let gic = tree.at("/intc");
    assert_eq!(gic.text("compatible"), "arm,gic-v3");
    assert_eq!(gic.longs("reg"), [0x3fff_0000, 0x1_0000, 0x3ffb_0000, 0x4_0000]);
    assert_eq!(gic.cells("#interrupt-cells"), [3]);
    assert_eq!(tree.at("/timer").cells("interrupts"), [1, 13, 8, 1, 14, 8, 1, 11, 8, 1, 10, 8]);
}

#[test]
fn adds_place_and_interrupts_to_a_devices_own_node() {
    let tree = Bench::default().tree();
    let serial = tree.at("/serial@9000000");
    assert_eq!(serial.text("compatible"), "arm,pl011\0arm,primecell");
    assert_eq!(serial.longs("reg"), [0x900_0000, 0x1000]);
    assert_eq!(serial.cells("interrupts"), [0, 1, 1]);
    assert_eq!(serial.text("clock-names"), "uartclk\0apb_pclk");
}

#[test]
fn shares_clocks_of_equal_frequency() {
    let nodes = vec![console(), with_property("clocks", FdtValue::FixedClocks(vec![32_768]))];
    let mut nodes = nodes;
    nodes[1].windows = vec![(0x900_1000, 0x1000)];
    let tree = Bench { nodes, ..Bench::default() }.tree();
    let (slow, fast) = (tree.at("/clock-32768"), tree.at("/clock-24000000"));
    assert_eq!(fast.cells("clock-frequency"), [24_000_000]);
    assert_eq!(
        tree.at("/serial@9000000").cells("clocks"),
        [fast.cells("phandle"), fast.cells("phandle")].concat()
    );
    assert_eq!(tree.at("/thing@9001000").bytes("clocks"), slow.bytes("phandle"));
}

#[test]
fn writes_every_kind_of_property() {
    let node = FdtNode::new("thing", &["test,thing"])
        .with("empty", FdtValue::Empty)
        .with("cells", FdtValue::U32s(vec![1, 2]))
        .with("longs", FdtValue::U64s(vec![3]))
        .with("bytes", FdtValue::Bytes(vec![9, 8, 7]));
    let nodes = vec![PlacedNode { node, ..PlacedNode::default() }];
    let tree = Bench { nodes, ..Bench::default() }.tree();
    let thing = tree.at("/thing");
    assert!(thing.bytes("empty").is_empty());
    assert_eq!(thing.cells("cells"), [1, 2]);
    assert_eq!(thing.longs("longs"), [3]);
    assert_eq!(thing.bytes("bytes"), [9, 8, 7]);
    assert!(!thing.properties.contains_key("reg") && !thing.properties.contains_key("interrupts"));
}

#[test]
fn lets_the_accelerator_add_its_nodes_last() {
    let tree = Bench::default().tree();
    assert_eq!(tree.children.last().unwrap().name, "accelerator");
    assert_eq!(tree.at("/accelerator").text("vm"), "guest");
}

#[test]
fn rejects_a_tree_that_is_too_large_and_says_what_is_big() {
    let bench = Bench { vcpus: 100, ..Bench::default() };
    let error = bench.error();
    assert!(error.contains("and may have 10240: 100 vCPUs take 92"), "{error}");
    assert!(error.contains("2 devices "), "{error}");
    assert!(Bench { limit: 64 * 1024, ..bench }.build().is_ok());
}

#[test]
fn leaves_room_for_what_the_hypervisor_adds() {
    let size = Bench::default().build().unwrap().len();
    let bench = |limit| Bench { message_spis: 10..15, limit, ..Bench::default() };
    assert!(bench(size + 5 * INTERRUPT).build().is_ok());
    let error = bench(size + 5 * INTERRUPT - 1).error();
    assert!(error.contains(&format!("may have {}", size - 1)), "{error}");
    assert!(error.contains("and 5 interrupts take 500 or keep them free"), "{error}");
}

#[test]
fn rejects_a_command_line_that_the_kernel_would_cut() {
    assert!(Bench { cmdline: "x".repeat(MAX_CMDLINE), ..Bench::default() }.build().is_ok());
    assert_eq!(
        Bench { cmdline: "x".repeat(MAX_CMDLINE + 1), ..Bench::default() }.error(),
        "the kernel command line has 2048 bytes and the kernel takes 2047: shorten --cmdline"
    );
    assert!(Bench { cmdline: "a\0b".to_owned(), ..Bench::default() }.error().contains("NUL"));
}

#[test]
fn rejects_nodes_that_claim_what_is_the_machines() {
    let error_of =
        |name: &str, value| Bench { nodes: vec![with_property(name, value)], ..Bench::default() }.error();
    assert_eq!(
        error_of("reg", FdtValue::U64s(vec![0, 1])),
        "the device-tree node 'thing@9000000' of a device: the property 'reg' is the machine's to give"
    );
    assert!(error_of("bad name", FdtValue::Empty).contains("property 'bad name': "));
    let twice = vec![console(), console()];
    assert!(
        Bench { nodes: twice, ..Bench::default() }.error().contains("another device has a node of this name")
    );
    let mut unnamed = console();
    unnamed.node.name = "a/b".to_owned();
    assert!(Bench { nodes: vec![unnamed], ..Bench::default() }.error().contains("'a/b@9000000'"));
}

/// A controller with nodes of its own, before a plain device.
fn with_extra(below: Vec<ExtraNode>, beside: Vec<ExtraNode>) -> Bench {
    let node = FdtNode::new("gpio", &["test,gpio"]);
    let place = (vec![(0x900_0000, 0x1000)], vec![1]);
    let controller = PlacedNode { node, windows: place.0, spis: place.1, below, beside };
    Bench { nodes: vec![controller, disk()], ..Bench::default() }
}

fn extra(name: &str) -> ExtraNode {
    ExtraNode::new(name, &["test,extra"])
}

#[test]
fn gives_a_device_nodes_that_refer_to_its_own() {
    let key = ExtraNode::new("power", &[])
        .with("linux,code", FdtValue::U32s(vec![116]))
        .with_device("gpios", &[&[3, 0], &[4, 1]]);
    let keys = extra("keys").with("clocks", FdtValue::FixedClocks(vec![5])).with_child(key);
    let sensor = extra("sensor@48")
        .with("reg", FdtValue::U32s(vec![0x48]))
        .with_device("interrupt-parent", &[&[]])
        .with_device("interrupts-extended", &[&[2, 1]]);
    let tree = with_extra(vec![sensor], vec![keys]).tree();
    let device = tree.at("/gpio@9000000").cells("phandle")[0];
    let keys = tree.at("/keys-9000000");
    assert_eq!(keys.text("compatible"), "test,extra");
    assert_eq!(keys.bytes("clocks"), tree.at("/clock-5").bytes("phandle"));
    let power = tree.at("/keys-9000000/power");
    assert!(!power.properties.contains_key("compatible"));
    assert_eq!(power.cells("linux,code"), [116]);
    assert_eq!(power.cells("gpios"), [device, 3, 0, device, 4, 1]);
    let sensor = tree.at("/gpio@9000000/sensor@48");
    assert_eq!((sensor.cells("reg"), sensor.cells("interrupt-parent")), (vec![0x48], vec![device]));
    assert_eq!(sensor.cells("interrupts-extended"), [device, 2, 1]);
    assert!(!tree.at("/virtio_mmio@9001000").properties.contains_key("phandle"));
}

#[test]
fn gives_each_device_that_is_referred_to_a_phandle_of_its_own() {
    let uses = || vec![extra("user").with_device("at", &[&[]])];
    let mut bench = with_extra(Vec::new(), uses());
    bench.nodes[1].beside = uses();
    let tree = bench.tree();
    let at = |base: &str| tree.at(&format!("/user-{base}")).cells("at");
    assert_ne!(at("9000000"), at("9001000"));
    assert_eq!(at("9001000"), tree.at("/virtio_mmio@9001000").cells("phandle"));
}

#[test]
fn rejects_extra_nodes_that_claim_what_is_the_machines() {
    let beside = |node| with_extra(Vec::new(), vec![node]).error();
    let reg = FdtValue::U64s(vec![0, 1]);
    assert_eq!(
        beside(extra("keys").with("reg", reg.clone())),
        "the device-tree node 'gpio@9000000' of a device: the extra node 'keys': the property 'reg' is the machine's \
         to give"
    );
    for name in ["interrupts", "phandle", "memory-region", "compatible"] {
        let claims = extra("x").with_child(extra("y").with(name, FdtValue::U32s(vec![1])));
        assert!(beside(claims).ends_with(&format!("'y': the property '{name}' is the machine's to give")));
        let refers = extra("x").with_device(name, &[&[]]);
        assert!(beside(refers).ends_with(&format!("the property '{name}' is the machine's to give")));
    }
    let twice = extra("x").with("a", FdtValue::Empty).with_device("a", &[&[]]);
    assert!(beside(twice).ends_with("the property 'a' is there twice"));
}

#[test]
fn rejects_names_of_extra_nodes_that_do_not_stand_alone() {
    let beside = |name: &str| with_extra(Vec::new(), vec![extra(name)]).error();
    for name in ["keys@9000000", &"x".repeat(23)] {
        assert!(beside(name).contains("has no '@' and up to 22 bytes"), "{name}");
    }
    assert!(beside("a/b").contains("the extra node 'a/b'"));
    assert!(beside("").ends_with("an extra node has no name"));
    assert!(with_extra(vec![extra("a"), extra("a")], Vec::new()).error().ends_with("'a' is there twice"));
    assert!(with_extra(Vec::new(), vec![extra("a"), extra("a")]).error().ends_with("'a' is there twice"));
    let mut bench = with_extra(Vec::new(), vec![extra("a")]);
    bench.nodes[0].windows.clear();
    assert!(bench.error().contains("only a device with registers"));
}

#[test]
fn counts_extra_nodes_with_the_tree() {
    let blob = extra("x").with("blob", FdtValue::Bytes(vec![0; 10 * 1024]));
    assert!(with_extra(vec![blob], Vec::new()).error().contains("2 devices 10"));
}

fn pci_host() -> PciNode {
    PciNode {
        ecam: 0x3000_0000..0x3010_0000,
        window: 0x1000_0000..0x2000_0000,
        frame: 0x802_0000..0x802_1000,
        message_spis: 5..12,
        lines: vec![Some(3), None, Some(4)],
    }
}

#[test]
fn describes_a_pci_host_and_where_its_messages_go() {
    let tree = Bench { pci: Some(pci_host()), ..Bench::default() }.tree();
    let frame = tree.at("/intc/v2m@8020000");
    assert_eq!(frame.longs("reg"), [0x802_0000, 0x1000]);
    assert_eq!((frame.cells("arm,msi-base-spi"), frame.cells("arm,msi-num-spis")), (vec![37], vec![7]));
    let host = tree.at("/pcie@30000000");
    assert_eq!(host.text("compatible"), "pci-host-ecam-generic");
    assert_eq!(host.longs("reg"), [0x3000_0000, 0x10_0000]);
    let [base, size] = [0x1000_0000, 0x1000_0000];
    assert_eq!(host.cells("ranges"), [0x0200_0000, 0, base, 0, base, 0, size]);
    assert_eq!(host.bytes("msi-parent"), frame.bytes("phandle"));
    let gic = tree.at("/intc").cells("phandle")[0];
    let of_device = |device: u32, spi| [device << 11, 0, 0, 1, gic, 0, 0, 0, spi, 1];
    assert_eq!(host.cells("interrupt-map"), [of_device(0, 3), of_device(2, 4)].concat());
    assert!(!host.properties.contains_key("memory-region"));
}

#[test]
fn leads_the_buffers_of_pci_devices_into_the_window() {
    let lent = MemoryRange { base: RAM_BASE, size: 192 * MIB, kind: RegionKind::Lent };
    let window = MemoryRange { base: RAM_BASE + 192 * MIB, size: 64 * MIB, kind: RegionKind::Shared };
    let bench = Bench { memory: vec![lent, window], pci: Some(pci_host()), ..Bench::default() };
    let tree = bench.tree();
    let pool = tree.at("/reserved-memory/restricted-dma-pool@8c000000");
    assert_eq!(tree.at("/pcie@30000000").bytes("memory-region"), pool.bytes("phandle"));
}

#[test]
fn is_silent_about_pci_where_there_is_none() {
    let tree = Bench::default().tree();
    assert!(tree.at("/intc").children.is_empty());
    assert!(!tree.children.iter().any(|node| node.name.starts_with("pci")));
}
