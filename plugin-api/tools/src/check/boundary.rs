//! Loading, making, starting and dropping; panics.

use std::sync::Arc;

use gvmm_plugin_api::host::{Instance, Library};

use super::bench::Recorder;
use super::registers_of::RegisterDevice;
use super::report::Verdict;
use super::subject::Subject;
use super::work::Plug;

/// The subject is loaded: that is the test.
pub(super) fn loads(_: &Subject) -> Result<Verdict, String> {
    Ok(Verdict::Pass)
}

pub(super) fn creates(subject: &Subject) -> Result<Verdict, String> {
    let made = subject.device()?;
    drop(made.device);
    check_failures(&made.host)
}

pub(super) fn starts(subject: &Subject) -> Result<Verdict, String> {
    for _ in 0..2 {
        let made = subject.device()?;
        if let Some(device) = RegisterDevice::of(&made.device) {
            device.start()?;
            device.reset();
        }
        if let Instance::Virtio(device) = &made.device {
            let plug = Plug::new(device.clone());
            plug.start_all()?;
            plug.stop_all()?;
            device.reset();
        }
        drop(made.device);
        check_failures(&made.host)?;
    }
    Ok(Verdict::Pass)
}

fn check_failures(host: &Recorder) -> Result<Verdict, String> {
    match host.failures().first() {
        Some(failure) => Err(format!("the device failed although nobody asked anything of it: {failure}")),
        None => Ok(Verdict::Pass),
    }
}

pub(super) fn panics(subject: &Subject) -> Result<Verdict, String> {
    let host = Arc::new(Recorder::default());
    subject.library.provoke_panic(subject.values(), host.clone()).map_err(|e| e.to_string())?;
    if !host.log_lines().iter().any(|line| line.contains(Library::PANIC_TEXT)) {
        return Err("what a panic says does not reach the log".to_owned());
    }
    Ok(Verdict::Pass)
}
