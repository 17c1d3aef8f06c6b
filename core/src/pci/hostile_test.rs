//! A guest that writes whatever it likes wherever it can.

use std::collections::BTreeSet;

use gvmm_plugin_api::mmio::Width;
use proptest::prelude::*;

use super::config::command;
use super::fixture::{Bench, SETSPI, WINDOW};
use crate::bus::Registers;
use crate::eventfd;

/// Addresses that a hostile guest would like BARs and messages to go to: the frame, the GIC, RAM, the other device.
const TARGETS: [u64; 8] = [
    SETSPI,
    0x802_0000,
    0x3fff_0000,
    0x8000_0000,
    WINDOW.start,
    WINDOW.start + 0x4000,
    WINDOW.end - 0x1000,
    0,
];

/// Where an access goes: configuration space of a device, its BAR as placed at power-on, or anywhere in the window.
#[derive(Debug, Clone)]
enum Place {
    Config(u64, u64),
    Registers(u64, u64),
    Window(u64),
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        (0u64..3, prop_oneof![0u64..0x70, 0u64..0x1000]).prop_map(|(device, at)| Place::Config(device, at)),
        (0u64..2, 0u64..0x4000).prop_map(|(device, at)| Place::Registers(device, at)),
        // The table: what is written there connects interrupts.
        (0u64..2, 0x1000u64..0x1020).prop_map(|(device, at)| Place::Registers(device, at)),
        (0u64..WINDOW.end - WINDOW.start).prop_map(Place::Window),
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        prop::sample::select(TARGETS.to_vec()),
        // INTIDs around those of the frame, and bits of command and control registers.
        30u64..60,
        prop::sample::select(vec![0, 1, 2, 4, 6, 0x406, 0x8000, 0xc000, 0xffff_ffff]),
    ]
}

fn access(bench: &Bench, write: bool, place: &Place, width: Width, value: u64) {
    let registers: &dyn Registers = match place {
        Place::Config(..) => &bench.ecam,
        Place::Registers(..) | Place::Window(_) => &bench.window,
    };
    let offset = match place {
        Place::Config(device, at) => device << 15 | at,
        Place::Registers(device, at) => device * 0x4000 + at,
        Place::Window(at) => *at,
    };
    // The bus gives a range no access that ends beyond it.
    let offset = offset.min(WINDOW.end - WINDOW.start - 8);
    // Whether an access is refused is the business of other tests.
    let _ = match write {
        true => registers.write(offset, width, value),
        false => registers.read(offset, width).map(drop),
    };
}

proptest! {
    #[test]
    fn nothing_that_a_guest_writes_leads_out_of_its_devices(
        accesses in prop::collection::vec((any::<bool>(), place(), 0usize..4, value()), 1..300)
    ) {
        let bench = Bench::new(2);
        for device in 0..2 {
            bench.set_config(device, 4, Width::Half, u64::from(command::MEMORY | command::BUS_MASTER));
        }
        for (write, place, width, value) in &accesses {
            access(&bench, *write, place, Width::ALL[*width], *value);
            if let Place::Config(device, at) = place {
                prop_assert!(bench.is_shown(*device, *at), "memory shows something else at {:#x}", at);
            }
            for page in bench.board.shown().into_iter().filter(|base| WINDOW.contains(base)) {
                let wrong = (page..page + 0x1000).step_by(4).find(|address| !bench.window_is_shown(*address));
                prop_assert_eq!(wrong, None);
            }
            bench.vectors.iter().flatten().for_each(|event| eventfd::signal(event));
        }
        // Recorders check the offsets themselves. Interrupts of the guest's own devices alone are connected, each once.
        let lines = bench.board.lines();
        prop_assert!(lines.iter().all(|spi| (1..=2).contains(spi) || (10..14).contains(spi)), "{lines:?}");
        let doorbells = bench.board.doorbells();
        prop_assert!(doorbells.iter().all(|address| WINDOW.contains(address)), "{doorbells:?}");
        prop_assert_eq!(doorbells.iter().collect::<BTreeSet<_>>().len(), doorbells.len());
        bench.host.detach();
        prop_assert!(bench.board.doorbells().is_empty());
        prop_assert!(bench.board.lines().iter().all(|spi| (1..=2).contains(spi)));
    }
}

#[test]
fn every_width_at_every_offset_of_registers_and_table_is_survived() {
    let bench = Bench::new(1);
    bench.set_config(0, 4, Width::Half, u64::from(command::MEMORY | command::BUS_MASTER));
    for offset in 0..0x4000 {
        for width in Width::ALL {
            for value in [0, u64::MAX, SETSPI] {
                access(&bench, true, &Place::Registers(0, offset), width, value);
                access(&bench, false, &Place::Registers(0, offset), width, value);
            }
        }
    }
    assert_eq!(bench.config(0, 0, Width::Word), 0x5678_1234);
}
