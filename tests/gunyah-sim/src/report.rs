//! What is left when the process ends: descriptors, mappings and VMs still alive, and what went wrong on the way.

use std::sync::{Mutex, Once, PoisonError};

use serde_json::{Value, json};

use crate::config::Config;
use crate::host::guard::Inside;
use crate::host::objects;
use crate::trace;

#[derive(Default)]
struct Tally {
    created: u64,
    destroyed: u64,
    problems: Vec<String>,
}

static TALLY: Mutex<Tally> = Mutex::new(Tally { created: 0, destroyed: 0, problems: Vec::new() });

fn tally() -> std::sync::MutexGuard<'static, Tally> {
    TALLY.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn vm_created(id: u64) {
    tally().created += 1;
    trace::event("create", json!({ "vm": id }));
}

/// The end of a VM's teardown, where the kernel emits `EVENT=destroy` (rule 1.8).
pub(crate) fn vm_destroyed(id: u64) {
    tally().destroyed += 1;
    trace::event("destroy", json!({ "vm": id }));
}

/// Something a test has to know: a script's expectation that failed, a dropped interrupt.
pub(crate) fn problem(text: String) {
    trace::event("problem", json!({ "text": text }));
    eprintln!("gunyah-sim: {text}");
    tally().problems.push(text);
}

fn summary() -> Value {
    let open = objects::open();
    let tally = tally();
    json!({
        "vms_created": tally.created,
        "vms_destroyed": tally.destroyed,
        "vms_alive": tally.created - tally.destroyed,
        "open": open,
        "problems": tally.problems,
    })
}

extern "C" fn at_exit() {
    let _inside = Inside::enter();
    objects::sweep();
    let summary = summary();
    trace::event("exit", summary.clone());
    let Some(path) = Config::get().and_then(|config| config.report.as_deref()) else { return };
    if let Err(error) = std::fs::write(path, format!("{summary:#}\n")) {
        eprintln!("gunyah-sim: cannot write the report {}: {error}", path.display());
    }
}

/// Makes sure the report is written when the process ends; called when the node is first opened.
pub(crate) fn arm() {
    static ONCE: Once = Once::new();
    // SAFETY: the handler stays loaded: a preloaded library is never unloaded.
    ONCE.call_once(|| unsafe {
        libc::atexit(at_exit);
    });
}
