//! Devices of L1 itself that `gvmm-device` serves on the machine that runs QEMU: our back ends under QEMU's front ends.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::back_end::Running;
use crate::build::{Build, Cross};
use crate::process;
use crate::workspace::Workspace;

/// The empty disk that options of the devices may name, and its size in bytes.
const DISK: (&str, u64) = ("disk.img", 32 << 20);
/// Unix sockets of cables: between two network cards, and between two streams of a guest's to port 5000 of a vsock device whose
/// socket is `vsock`.
const CABLES: [&str; 2] = ["cable.sock", "vsock_5000"];

/// A device, as the `group.toml` of end-to-end tests describes it. Paths are relative to the working folder of the boot,
/// where an empty disk `disk.img` and the sockets `cable.sock` and `vsock_5000` are. Each of those joins the two that connect to it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    /// Names QEMU's character device, and the socket `ID.sock` that it leads to.
    id: String,
    /// The package of the plugin.
    plugin: String,
    /// Options of the device.
    #[serde(default)]
    options: String,
    /// Arguments of QEMU.
    qemu: String,
}

/// Devices whose programs are built.
#[derive(Default)]
pub(crate) struct Served {
    devices: Vec<Device>,
}

struct Device {
    id: String,
    program: PathBuf,
    argument: String,
    qemu: String,
}

impl Served {
    /// Builds `gvmm-device` and the plugins for this machine. Without optimisation: the guest is what takes the time.
    pub(crate) fn prepare(workspace: &Workspace, descriptions: &[Description]) -> Result<Self> {
        let build = Build { workspace, target: None, cross: &Cross::default() };
        let output = build.debug_output();
        let device = |description: &Description| {
            let Description { id, plugin, options, qemu } = description;
            for package in ["gvmm-vhost", plugin] {
                process::run(build.debug_cargo("build").args(["--quiet", "--package", package]))?;
            }
            let library = output.join(format!("lib{plugin}.so"));
            let argument = [&*library.display().to_string(), options].join(",");
            let argument = argument.trim_end_matches(',').to_owned();
            Ok(Device { id: id.clone(), program: output.join("gvmm-device"), argument, qemu: qemu.clone() })
        };
        Ok(Self { devices: descriptions.iter().map(device).collect::<Result<_>>()? })
    }

    /// Starts them in a folder.
    pub(crate) fn start(&self, folder: &Path) -> Result<Vec<Running>> {
        if self.devices.is_empty() {
            return Ok(Vec::new());
        }
        let disk = std::fs::File::create(folder.join(DISK.0))?;
        disk.set_len(DISK.1)?;
        CABLES.iter().try_for_each(|name| lay_cable(&folder.join(name))).context("a socket for a cable")?;
        self.devices.iter().map(|device| device.start(folder)).collect()
    }

    /// Has QEMU, which has to run in the same folder, use them. They share the guest's memory.
    pub(crate) fn attach(&self, qemu: &mut Command, memory_mib: u32) {
        if self.devices.is_empty() {
            return;
        }
        let memory = format!("memory-backend-memfd,id=shared,share=on,size={memory_mib}M");
        qemu.args(["-object", &memory, "-machine", "memory-backend=shared"]);
        for Device { id, qemu: arguments, .. } in &self.devices {
            qemu.args(["-chardev", &format!("socket,id={id},path={id}.sock")]);
            qemu.args(arguments.split_whitespace());
        }
    }
}

impl Device {
    fn start(&self, folder: &Path) -> Result<Running> {
        let socket = format!("{}.sock", self.id);
        let mut command = Command::new(&self.program);
        command.arg(&self.argument).args(["--socket-path", &socket]).current_dir(folder);
        Running::start(&mut command, &folder.join(&socket))
    }
}

/// Passes on to either of the two that connect what the other sends, and that it sends no more.
fn lay_cable(socket: &Path) -> io::Result<()> {
    fn pass_on(mut from: UnixStream, mut to: UnixStream) -> io::Result<()> {
        io::copy(&mut from, &mut to)?;
        to.shutdown(Shutdown::Write)
    }
    let listener = UnixListener::bind(socket)?;
    std::thread::spawn(move || -> io::Result<()> {
        let (one, other) = (listener.accept()?.0, listener.accept()?.0);
        let (from_other, to_one) = (other.try_clone()?, one.try_clone()?);
        std::thread::spawn(move || pass_on(from_other, to_one));
        pass_on(one, other)
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_cable_leads_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("cable");
        lay_cable(&socket).unwrap();
        let mut ends = [(); 2].map(|()| UnixStream::connect(&socket).unwrap());
        for (from, to) in [(0, 1), (1, 0)] {
            ends[from].write_all(b"frame").unwrap();
            let mut frame = [0; 5];
            ends[to].read_exact(&mut frame).unwrap();
            assert_eq!(&frame, b"frame");
        }
        let [one, mut other] = ends;
        one.shutdown(Shutdown::Write).unwrap();
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn qemu_is_told_of_devices_and_of_nothing_without_them() {
        let line = |served: &Served| {
            let mut command = Command::new("qemu");
            served.attach(&mut command, 512);
            process::display(&command)
        };
        assert_eq!(line(&Served::default()), "qemu");
        let device = Device {
            id: "rng".to_owned(),
            program: PathBuf::new(),
            argument: String::new(),
            qemu: "-device vhost-user-rng-pci,chardev=rng".to_owned(),
        };
        let told = line(&Served { devices: vec![device] });
        assert!(
            told.ends_with("-chardev socket,id=rng,path=rng.sock -device vhost-user-rng-pci,chardev=rng"),
            "{told}"
        );
    }
}
