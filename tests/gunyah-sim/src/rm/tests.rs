use super::*;

/// A tree that every rule accepts, for one VM of `vcpus` vCPUs at 2 GiB.
pub(crate) fn valid_tree(vcpus: u32) -> Tree {
    use crate::fdt::Node;
    let cell = |values: &[u32]| values.iter().flat_map(|value| value.to_be_bytes()).collect::<Vec<u8>>();
    let mut root = Node::new("");
    root.set_u32("#address-cells", 2);
    root.set_u32("#size-cells", 2);
    root.set_u32("interrupt-parent", 1);

    let mut config = Node::new("gunyah-vm-config");
    config.set_strings("image-name", &["sim-vm"]);
    let mut memory = Node::new("memory");
    memory.set("base-address", cell(&[0, 0x8000_0000]));
    let mut affinity = Node::new("vcpus");
    affinity.set_strings("affinity", &["proxy"]);
    let mut vdevices = Node::new("vdevices");
    vdevices.children.push(bell(1, 1));
    vdevices.children.push(bell(2, 2));
    config.children = vec![memory, affinity, vdevices];

    let mut cpus = Node::new("cpus");
    cpus.set_u32("#address-cells", 1);
    cpus.set_u32("#size-cells", 0);
    for id in 0..vcpus {
        let mut cpu = Node::new(&format!("cpu@{id}"));
        cpu.set_strings("device_type", &["cpu"]);
        cpu.set_strings("enable-method", &["psci"]);
        cpu.set_u32("reg", id);
        cpus.children.push(cpu);
    }
    let mut gic = Node::new("intc@3fff0000");
    gic.set_strings("compatible", &["arm,gic-v3"]);
    gic.set("interrupt-controller", Vec::new());
    gic.set_u32("#interrupt-cells", 3);
    gic.set_u32("phandle", 1);
    let size = 0x2_0000 * vcpus;
    gic.set("reg", cell(&[0, 0x3fff_0000, 0, 0x1_0000, 0, 0x3fff_0000 - size, 0, size]));
    let mut psci = Node::new("psci");
    psci.set_strings("compatible", &["arm,psci-1.0"]);
    root.children = vec![Node::new("chosen"), config, cpus, gic, psci];
    Tree { root, ..Tree::default() }
}

/// A doorbell vdevice on an edge SPI.
pub(crate) fn bell(label: u32, spi: u32) -> crate::fdt::Node {
    let mut bell = crate::fdt::Node::new(&format!("bell-{label:x}"));
    bell.set_strings("vdevice-type", &["doorbell"]);
    bell.set_strings("generate", &[&format!("/hypervisor/bell-{label:x}")]);
    bell.set_u32("label", label);
    bell.set("peer-default", Vec::new());
    bell.set("interrupts", [0, spi, 1].iter().flat_map(|value: &u32| value.to_be_bytes()).collect());
    bell
}

/// One region of RAM with everything allowed.
pub(crate) fn ram(lent: bool) -> Region {
    Region { label: 0, guest: 0x8000_0000, size: 0x1000_0000, lent, writable: true, executable: true }
}

struct Case {
    tree: Tree,
    generation: Generation,
    android: bool,
    build: Build,
    cores: u32,
    regions: Vec<Region>,
    range: GuestRange,
    firmware: Option<GuestRange>,
}

impl Case {
    fn new(generation: Generation) -> Case {
        Case {
            tree: valid_tree(1),
            generation,
            android: generation == Generation::C,
            build: if generation == Generation::A { Build::Debug } else { Build::Production },
            cores: 8,
            regions: vec![ram(generation != Generation::A)],
            range: GuestRange { guest: 0x8f00_0000, size: 0x4000 },
            firmware: None,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Case)) -> Case {
        change(&mut self);
        self
    }

    fn describe(&self) -> Result<Description, Refusal> {
        let mut bytes = self.tree.write();
        bytes.resize(bytes.len().max(self.range.size as usize), 0);
        describe(&Offer {
            generation: self.generation,
            android: self.android,
            build: self.build,
            cores: self.cores,
            regions: &self.regions,
            image: 0,
            tree: self.range,
            tree_bytes: &bytes,
            firmware: self.firmware,
            seed: 0x1234,
        })
    }

    fn refusal(&self) -> Refusal {
        match self.describe() {
            Err(refusal) => refusal,
            Ok(_) => panic!("the offer was not refused"),
        }
    }

    fn config(&mut self) -> &mut crate::fdt::Node {
        self.tree.root.child_mut("gunyah-vm-config").unwrap()
    }

    fn memory(&mut self) -> &mut crate::fdt::Node {
        self.config().child_mut("memory").unwrap()
    }

    fn vdevices(&mut self) -> &mut crate::fdt::Node {
        self.config().child_mut("vdevices").unwrap()
    }
}

fn shared_window(label: u32, base: u64, optional: bool) -> crate::fdt::Node {
    let mut memory = crate::fdt::Node::new("memory");
    memory.set_u32("label", label);
    memory.set_u64("base", base);
    if optional {
        memory.set("optional", Vec::new());
    }
    let mut window = crate::fdt::Node::new("swiotlb");
    window.set_strings("vdevice-type", &["shm"]);
    window.set("peer-default", Vec::new());
    window.children.push(memory);
    window
}

#[test]
fn a_valid_offer_is_described_in_every_generation() {
    for generation in [Generation::A, Generation::B, Generation::C] {
        let description = Case::new(generation).describe().unwrap();
        assert_eq!(description.placed, [0x8000_0000]);
        assert_eq!(description.tree_address, 0x8f00_0000);
        assert_eq!((description.vcpus, description.psci), (1, true));
        assert_eq!(description.gic.distributor, 0x3fff_0000);
        assert_eq!(description.doorbells.len(), 2);
        assert_eq!(description.warnings, [""; 0]);
    }
}

#[test]
fn the_patched_tree_has_what_the_resource_manager_adds() {
    let description = Case::new(Generation::A).describe().unwrap();
    let tree = Tree::read(&description.patched_tree).unwrap();
    assert_eq!(tree.at("/chosen").unwrap().property("kaslr-seed"), Some(&0x1234u64.to_be_bytes()[..]));
    assert_eq!(tree.at("/memory").unwrap().cells("reg"), [0, 0x8000_0000, 0, 0x1000_0000]);
    assert_eq!(tree.at("/hypervisor/bell-2").unwrap().u32("qcom,label"), Some(2));
    assert_eq!(tree.at("/hypervisor/qcom,gunyah-vm").unwrap().string("qcom,image-name"), Some("sim-vm"));
    assert!(tree.at("/reserved-memory").is_some() && tree.at("/vsoc").is_some());
}

#[test]
fn a_tree_range_that_is_not_whole_pages_is_an_invalid_argument() {
    let size = Case::new(Generation::A).with(|case| case.range.size = 0x1100).refusal();
    let address = Case::new(Generation::A).with(|case| case.range.guest += 8).refusal();
    assert_eq!((size.errno(), address.errno()), (Errno::EINVAL, Errno::EINVAL));
    assert_eq!(size.message, Message::ConfigImage);
}

#[test]
fn rejects_a_tree_without_its_required_nodes() {
    let without = |name: &str| {
        Case::new(Generation::A).with(|case| case.tree.root.children.retain(|node| node.base_name() != name))
    };
    assert_eq!(without("chosen").refusal().errno(), Errno::EPERM);
    assert_eq!(without("gunyah-vm-config").refusal().errno(), Errno::ENODEV);
    assert_eq!(without("cpus").refusal().errno(), Errno::ENODEV);
    assert_eq!(without("intc").refusal().errno(), Errno::ENODEV);
}

#[test]
fn rejects_nodes_the_resource_manager_makes_itself() {
    let hypervisor = Case::new(Generation::A)
        .with(|case| case.tree.root.children.push(crate::fdt::Node::new("hypervisor")))
        .refusal();
    let memory = Case::new(Generation::A)
        .with(|case| {
            let mut node = crate::fdt::Node::new("memory@80000000");
            node.set_strings("device_type", &["memory"]);
            case.tree.root.children.push(node);
        })
        .refusal();
    let below = Case::new(Generation::A).with(|case| case.memory().set_strings("device_type", &["memory"]));
    assert!(below.refusal().why.contains("not /memory"));
    assert!(hypervisor.why.contains("/hypervisor exists"), "{}", hypervisor.why);
    assert!(memory.why.contains("not /memory"), "{}", memory.why);
}

#[test]
fn base_address_is_ignored_when_the_first_root_child_has_other_cells() {
    let case = Case::new(Generation::A).with(|case| case.tree.root.children.swap(0, 2));
    let refusal = case.refusal();
    assert!(refusal.why.contains("0x28800000 overlaps the device range"), "{}", refusal.why);
}

#[test]
fn ranges_of_three_cells_in_the_first_child_stop_the_resource_manager() {
    let with = |place: usize| {
        Case::new(Generation::A).with(move |case| {
            let mut host = crate::fdt::Node::new("pcie@30000000");
            host.set_u32("#address-cells", 3);
            host.set("ranges", vec![0; 28]);
            case.tree.root.children.insert(place, host);
        })
    };
    assert!(with(0).refusal().why.contains("stops at the ranges of pcie@30000000"));
    assert!(with(1).describe().is_ok());
}

#[test]
fn a_64_bit_size_max_is_ignored_behind_chosen() {
    let case = Case::new(Generation::A).with(|case| case.memory().set_u64("size-max", 0x1000));
    assert!(case.describe().unwrap().warnings[0].contains("size-max has 2 cells"));
    let heeded = Case::new(Generation::A).with(|case| case.memory().set_u32("size-max", 0x1000)).refusal();
    assert!(heeded.why.contains("exceed size-max"), "{}", heeded.why);
}

#[test]
fn an_image_at_1_gib_collides_with_the_info_page() {
    let at =
        |base: u64| Case::new(Generation::A).with(move |case| case.memory().set_u64("base-address", base));
    assert!(at(0x4000_0000).refusal().why.contains("VM-info page"));
    assert_eq!(at(0x4020_0000).describe().unwrap().placed, [0x4020_0000]);
    assert_eq!(at(0x5010_0000).describe().unwrap().placed, [0x5020_0000]);
    assert_eq!(at(32 << 30).describe().unwrap().placed, [32 << 30]);
    assert!(at(1 << 36).refusal().why.contains("beyond the guest's addresses"));
}

#[test]
fn the_address_given_for_memory_is_ignored_in_generation_a() {
    let extra = Region { label: 5, guest: 0xa000_0000, size: 0x10_0000, ..ram(false) };
    let case = Case::new(Generation::A).with(|case| case.regions.push(extra));
    assert_eq!(case.describe().unwrap().placed, [0x8000_0000, 0x4000_1000]);
    let with_window = case.with(|case| case.vdevices().children.push(shared_window(5, 0xa000_0000, false)));
    assert_eq!(with_window.describe().unwrap().placed, [0x8000_0000, 0xa000_0000]);
}

#[test]
fn bad_windows_are_refused() {
    let with = |change: fn(&mut crate::fdt::Node)| {
        let mut window = shared_window(5, 0xa000_0000, true);
        change(&mut window);
        Case::new(Generation::A).with(|case| case.vdevices().children.push(window)).describe()
    };
    assert!(with(|_| {}).is_ok());
    assert!(with(|window| window.children.clear()).is_err(), "no memory");
    assert!(with(|window| window.children[0].name = "memory@0".to_owned()).is_err(), "another name");
    assert!(with(|window| window.children.push(crate::fdt::Node::new("more"))).is_err(), "a second node");
    assert!(with(|window| window.children[0].set_u32("base", 0xa000_0000)).is_err(), "one cell");
    assert!(with(|window| window.children[0].set("allocate-base", Vec::new())).is_err(), "both");
    let unlabelled = with(|window| window.children[0].properties.retain(|property| property.name != "label"));
    assert!(unlabelled.is_err(), "no label");
}

#[test]
fn a_window_without_a_parcel_has_to_be_optional_in_generation_c() {
    let with = |optional| {
        Case::new(Generation::C)
            .with(|case| case.vdevices().children.push(shared_window(1, 0x9000_0000, optional)))
    };
    assert!(with(false).refusal().why.contains("no parcel"));
    assert!(with(true).describe().is_ok());
}

#[test]
fn a_shared_image_is_accepted_by_the_debug_build_only() {
    let shared = |build| {
        Case::new(Generation::A).with(|case| {
            case.build = build;
            case.regions[0].lent = false;
        })
    };
    assert!(shared(Build::Debug).describe().is_ok());
    assert_eq!(shared(Build::Production).refusal().errno(), Errno::ENODEV);
}

#[test]
fn reserved_memory_has_to_be_a_parcel() {
    let pool = |size: u64| {
        Case::new(Generation::C).with(move |case| {
            let swiotlb = Region { guest: 0x9000_0000, size: 0x10_0000, ..ram(false) };
            case.regions.push(swiotlb);
            let mut child = crate::fdt::Node::new("restricted_dma@90000000");
            let reg = [0x9000_0000u64.to_be_bytes(), size.to_be_bytes()].concat();
            child.set("reg", reg);
            let mut node = crate::fdt::Node::new("reserved-memory");
            node.children.push(child);
            case.tree.root.children.push(node);
        })
    };
    assert!(pool(0x10_0000).describe().is_ok());
    assert!(pool(0x20_0000).refusal().why.contains("no accepted parcel"));
}

#[test]
fn vcpus_beyond_the_platforms_cores_are_refused() {
    let case = |cores| {
        Case::new(Generation::A).with(move |case| {
            case.tree = valid_tree(8);
            case.cores = cores;
        })
    };
    assert_eq!(case(8).describe().unwrap().vcpus, 8);
    assert!(case(4).refusal().why.contains("invalid vcpu cnt(8) vs max cores(4)"));
}

#[test]
fn a_secondary_without_enable_method_is_refused() {
    let case = Case::new(Generation::A).with(|case| {
        case.tree = valid_tree(2);
        let cpus = case.tree.root.child_mut("cpus").unwrap();
        cpus.children[1].properties.retain(|property| property.name != "enable-method");
    });
    assert!(case.refusal().why.contains("enable-method"));
}

#[test]
fn without_psci_anywhere_it_is_off() {
    let case = Case::new(Generation::A).with(|case| {
        case.tree.root.children.retain(|node| node.name != "psci");
        let cpus = case.tree.root.child_mut("cpus").unwrap();
        cpus.children[0].properties.retain(|property| property.name != "enable-method");
    });
    assert!(!case.describe().unwrap().psci);
}

#[test]
fn bad_doorbells_are_refused() {
    let with = |bell: crate::fdt::Node| {
        Case::new(Generation::A).with(|case| case.vdevices().children.push(bell)).describe()
    };
    let interrupts = |cells: [u32; 3]| {
        let mut node = bell(9, 9);
        node.set("interrupts", cells.iter().flat_map(|cell| cell.to_be_bytes()).collect());
        node
    };
    assert!(with(bell(9, 9)).is_ok());
    assert!(with(bell(1, 9)).is_err(), "label used twice");
    assert!(with(bell(9, 1)).is_err(), "SPI used twice");
    assert!(with(interrupts([0, 988, 1])).is_err(), "no such SPI");
    assert!(with(interrupts([0, 9, 2])).is_err(), "falling edge");
    assert!(with(interrupts([4, 9, 1])).is_err(), "no such kind");
    assert!(with(interrupts([0, 987, 4])).is_ok());
    let mut lonely = bell(9, 9);
    lonely.properties.retain(|property| property.name != "peer-default");
    assert!(with(lonely).is_err(), "no peer");
}

#[test]
fn a_gic_without_reg_is_placed_and_patched() {
    let case = Case::new(Generation::A).with(|case| {
        let gic = case.tree.root.child_mut("intc").unwrap();
        gic.properties.retain(|property| property.name != "reg");
    });
    let description = case.describe().unwrap();
    let tree = Tree::read(&description.patched_tree).unwrap();
    assert_eq!(description.gic.redistributors, 0x3ffd_0000);
    assert_eq!(tree.at("/intc").unwrap().cells("reg")[..2], [0, 0x3fff_0000]);
}

#[test]
fn bad_gics_are_refused() {
    let with = |change: fn(&mut crate::fdt::Node)| {
        Case::new(Generation::A).with(|case| change(case.tree.root.child_mut("intc").unwrap())).describe()
    };
    assert!(with(|gic| gic.set_u32("#interrupt-cells", 1)).is_err());
    assert!(with(|gic| gic.set_u32("#redistributor-regions", 2)).is_err());
    assert!(with(|gic| gic.set_u64("redistributor-stride", 0x1_0000)).is_err());
    assert!(with(|gic| gic.set_strings("compatible", &["arm,cortex-a15-gic"])).is_err());
    assert!(
        with(|gic| {
            let reg: [u32; 8] = [0, 0x3fff_1000, 0, 0x1_0000, 0, 0x3ffd_0000, 0, 0x2_0000];
            gic.set("reg", reg.iter().flat_map(|cell| cell.to_be_bytes()).collect());
        })
        .is_err()
    );
}

#[test]
fn a_large_tree_needs_twice_its_room_in_the_debug_build() {
    let padded = |bytes: usize, room: u64, build| {
        Case::new(Generation::A).with(move |case| {
            case.build = build;
            case.regions[0].lent = true;
            case.tree.root.set("padding", vec![0; bytes]);
            case.range.size = room;
        })
    };
    assert!(padded(8 * 1024, 0x4000, Build::Debug).describe().is_ok());
    assert!(padded(20 * 1024, 0x7000, Build::Debug).refusal().why.contains("made in place"));
    assert!(padded(20 * 1024, 0x7000, Build::Production).describe().is_ok());
    assert!(padded(45 * 512, 0x6000, Build::Production).refusal().why.contains("exceeds its range"));
}

#[test]
fn doorbells_take_room_in_the_tree_and_in_the_overlay() {
    let with = |bells: u32, padding: usize| {
        Case::new(Generation::A).with(move |case| {
            case.range.size = 0x1_0000;
            case.tree.root.set("padding", vec![0; padding]);
            case.vdevices().children.extend((3..=bells).map(|label| bell(label, label)));
        })
    };
    assert!(with(36, 0).describe().is_ok() && with(36, 4).describe().is_ok());
    // Beyond 16 KiB a copy behind the tree is used, which is at a multiple of 8 by luck alone.
    let refusals: Vec<Refusal> =
        [0, 4].into_iter().filter_map(|padding| with(41, padding).describe().err()).collect();
    assert_eq!(refusals.len(), 1);
    assert!(refusals[0].why.contains("not 8-byte aligned"), "{}", refusals[0].why);
}

#[test]
fn firmware_wants_its_address_and_lent_memory() {
    let case = |address: Option<u64>| {
        Case::new(Generation::C).with(move |case| {
            let firmware = Region { guest: 0x7fc0_0000, size: 0x40_0000, ..ram(true) };
            case.regions.push(firmware);
            case.firmware = Some(GuestRange { guest: 0x7fc0_0000, size: 0x20_0000 });
            if let Some(address) = address {
                case.memory().set_u64("firmware-address", address);
            }
        })
    };
    assert!(case(None).refusal().why.contains("firmware-address is missing"));
    let description = case(Some(0x7fc0_0000)).describe().unwrap();
    assert_eq!(description.firmware_address, Some(0x7fc0_0000));
    let tree = Tree::read(&description.patched_tree).unwrap();
    assert_eq!(tree.at("/memory").unwrap().cells("reg"), [0, 0x8000_0000, 0, 0x1000_0000]);
    assert!(
        case(None).with(|case| case.regions[1].lent = false).refusal().why.contains("not in lent memory")
    );
}
