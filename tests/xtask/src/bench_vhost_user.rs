//! `cargo xtask bench vhost-user`: gvmm-device and QEMU's storage daemon on the same image, in turn, under the same front
//! end, on this machine and without a guest.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::back_end::Running;
use crate::build::{Build, Cross};
use crate::process::{self, find_program, progress};
use crate::samples::Samples;
use crate::setup;
use crate::workspace::Workspace;

/// QEMU's back end, in Debian's package of this name.
const STORAGE_DAEMON: &str = "qemu-storage-daemon";
const STORAGE_DAEMON_PACKAGE: &str = "qemu-system-common";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each back end runs
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each of the six loads
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// MiB of the image
    #[arg(long, default_value_t = 512)]
    size: u64,
    /// Folder for the image; on the disk that is to be measured
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Bypass the page cache
    #[arg(long)]
    direct: bool,
}

/// A program that serves a disk, and what it is told.
struct BackEnd {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
}

impl BackEnd {
    fn listening_on(&self, socket: &Path) -> Command {
        let mut command = Command::new(&self.program);
        match self.arguments.as_slice() {
            [device] => command.arg(device).arg("--socket-path").arg(socket),
            [first @ .., export] => command.args(first).arg(format!("{export}{}", socket.display())),
            [] => &mut command,
        };
        command
    }
}

/// What is compared: back ends on the same disk, ours first.
struct Comparison {
    what: &'static str,
    back_ends: Vec<BackEnd>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if find_program(STORAGE_DAEMON).is_none() {
        setup::apt_install(&[STORAGE_DAEMON_PACKAGE])?;
    }
    let daemon = find_program(STORAGE_DAEMON)
        .with_context(|| format!("package {STORAGE_DAEMON_PACKAGE} has no {STORAGE_DAEMON}"))?;
    let build = Build { workspace, target: None, cross: &Cross::default() };
    progress("building gvmm-device, virtio_blk and the front end");
    for package in ["gvmm-vhost", "virtio_blk", "vhost-load"] {
        process::run(build.cargo("build").args(["--quiet", "--package", package]))?;
    }
    let folder = options.folder.clone().unwrap_or_else(|| workspace.target.join("bench-vhost-user"));
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let image = folder.join("disk.img");
    fill(&image, options.size << 20).with_context(|| image.display().to_string())?;
    let bench = Bench { folder: &folder, image: &image, load: build.output().join("vhost-load"), options };
    let made = bench.run(&comparisons(&build.output(), &daemon, &image, options));
    std::fs::remove_file(&image)?;
    made.map(|()| ExitCode::SUCCESS)
}

/// Fills a file with bytes that are no zeros, so that no file system leaves them out.
fn fill(image: &Path, size: u64) -> io::Result<()> {
    let mut random = io::Read::take(File::open("/dev/urandom")?, size);
    let mut file = File::create(image)?;
    io::copy(&mut random, &mut file)?;
    file.sync_all()
}

fn comparisons(output: &Path, daemon: &Path, image: &Path, options: &Options) -> Vec<Comparison> {
    let on_off = |on: bool| if on { "on" } else { "off" };
    let direct = on_off(options.direct);
    let ours = |name, more: &str| {
        let plugin = output.join("libvirtio_blk.so");
        let device = format!("{},disk={},{more}", plugin.display(), image.display());
        BackEnd { name, program: output.join("gvmm-device"), arguments: vec![device] }
    };
    let theirs = |name, block_device: String| {
        let export = "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=";
        let block_device = format!("node-name=disk,{block_device}");
        let arguments = ["--blockdev".to_owned(), block_device, "--export".to_owned(), export.to_owned()];
        BackEnd { name, program: daemon.to_owned(), arguments: arguments.into() }
    };
    let file = |aio| format!("driver=file,filename={},aio={aio},cache.direct={direct}", image.display());
    let null = format!("driver=null-co,size={}", options.size << 20);
    let null_zeroes = format!("{null},read-zeroes=on");
    vec![
        Comparison {
            what: "the same image",
            back_ends: vec![
                ours("gvmm-device", &format!("direct={direct}")),
                theirs("qsd_threads", file("threads")),
                theirs("qsd_io_uring", file("io_uring")),
            ],
        },
        Comparison {
            what: "no disk: ours fills buffers with zeros; QEMU's null device does not, and does",
            back_ends: vec![
                ours("gvmm-device_null", "format=null"),
                theirs("qsd_null", null),
                theirs("qsd_zeroes", null_zeroes),
            ],
        },
    ]
}

struct Bench<'a> {
    folder: &'a Path,
    image: &'a Path,
    load: PathBuf,
    options: &'a Options,
}

impl Bench<'_> {
    fn run(&self, comparisons: &[Comparison]) -> Result<()> {
        let mut samples = Samples::default();
        for round in 1..=self.options.rounds {
            progress(format!("round {round} of {}", self.options.rounds));
            for back_end in comparisons.iter().flat_map(|comparison| &comparison.back_ends) {
                self.warm_up()?;
                let printed = self.measure(back_end).with_context(|| back_end.name)?;
                print!("{printed}");
                printed.lines().for_each(|line| samples.take(line));
            }
        }
        for Comparison { what, back_ends } in comparisons {
            let names: Vec<_> = back_ends.iter().map(|back_end| back_end.name.to_owned()).collect();
            print!("\nRequests a second, {what}:\n{}", samples.table(&names));
        }
        Ok(())
    }

    /// Brings the image into the page cache, so that no back end finds it there because of the one before.
    fn warm_up(&self) -> Result<()> {
        if !self.options.direct {
            io::copy(&mut File::open(self.image)?, &mut io::sink())?;
        }
        Ok(())
    }

    fn measure(&self, back_end: &BackEnd) -> Result<String> {
        let socket = self.folder.join("socket");
        let running = Running::start(&mut back_end.listening_on(&socket), &socket)?;
        let mut load = Command::new(&self.load);
        load.arg(&socket).args(["--name", back_end.name]);
        let printed = process::output(load.arg("--seconds").arg(self.options.seconds.to_string()));
        drop(running);
        printed
    }
}
