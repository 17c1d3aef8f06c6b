//! The test bed: Debian's arm64 Linux ("L1") under `qemu-system-aarch64` with EL2, so that `/dev/kvm` works
//! inside and gvmm can run guests ("L2") there.
//!
//! L1 starts from the cached base image, mounts a read-only image with the freshly made files at `/bed`, runs
//! a script from it, and hands back what the script left in `/results`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::apt::recreate;
use crate::back_end::Running;
use crate::images;
use crate::process::{self, shell_quote};
use crate::served::Served;
use crate::setup::Ready;
use crate::workspace::Workspace;

/// Room for what a script leaves behind, in bytes; the file is sparse.
const RESULTS_SIZE: u64 = 1 << 30;
/// QEMU's escape key in an interactive session, Ctrl-]: Ctrl-a belongs to gvmm.
const QEMU_ESCAPE: &str = "0x1d";

/// A boot of L1 under preparation.
pub(crate) struct Bed<'a> {
    workspace: &'a Workspace,
    ready: &'a Ready,
    /// Working folder of this boot.
    folder: PathBuf,
    /// Becomes `/bed`.
    tree: PathBuf,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) timeout: Duration,
    /// Modules that L1 loads beside those of disks.
    pub(crate) modules: Vec<String>,
    /// Devices of L1 that are served by programs of this machine.
    pub(crate) served: Served,
}

/// What a script left.
pub(crate) struct Outcome {
    /// The script's exit status; `None` if L1 ended before the script did.
    pub(crate) status: Option<i32>,
    /// Host folder with what was in `/results`.
    pub(crate) results: PathBuf,
    /// All that L1 wrote on its console (not kept for interactive sessions).
    pub(crate) console: PathBuf,
}

impl<'a> Bed<'a> {
    /// Prepares a boot in `target/bed/NAME`; `/bed` gets the kernel's initrd and a root disk for guests.
    pub(crate) fn new(workspace: &'a Workspace, ready: &'a Ready, name: &str) -> Result<Self> {
        let folder = workspace.target.join("bed").join(name);
        recreate(&folder)?;
        let tree = folder.join("tree");
        std::fs::create_dir(&tree)?;
        images::initrd(workspace, &ready.guest, &tree.join("initrd"))?;
        images::guest_disk(workspace, &ready.guest, &folder.join("guest-root"), &tree.join("svm_disk.img"))?;
        Ok(Self {
            workspace,
            ready,
            folder,
            tree,
            cpus: 1,
            memory_mib: 3072,
            timeout: Duration::from_secs(600),
            modules: vec!["tun".to_owned()],
            served: Served::default(),
        })
    }

    /// Puts a file or a folder at `/bed/NAME`.
    pub(crate) fn add(&self, from: &Path, name: &str) -> Result<()> {
        let to = self.tree.join(name);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut command = process::program("cp");
        command
            .args(["--recursive", "--dereference", "--preserve=mode", "--sparse=always"])
            .arg(from)
            .arg(&to);
        process::output(&mut command).map(drop)
    }

    /// Boots L1 and runs a command line of its shell, handing every line of output on as it comes.
    pub(crate) fn run(&self, script: &str, on_line: impl FnMut(&str)) -> Result<Outcome> {
        self.prepare(script)?;
        let console = self.folder.join("console.log");
        let mut command = self.qemu();
        command.args(["-serial", "stdio", "-monitor", "none"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let back_ends = self.served.start(&self.folder)?;
        let mut qemu = start(&mut command)?;
        let output = qemu.stdout.take().context("QEMU has no output")?;
        let deadline = Instant::now() + self.timeout;
        let watched = std::thread::scope(|scope| {
            let watchdog = scope.spawn(|| wait(&mut qemu, Some(deadline)));
            let copied = copy_lines(output, &console, on_line);
            let status = watchdog.join().map_err(|_| anyhow::anyhow!("the watchdog of QEMU panicked"))?;
            copied.and(status)
        });
        match watched? {
            Some(status) if status.success() => {}
            Some(status) => {
                bail!("the test bed's QEMU failed ({status}); its console is in {}", console.display())
            }
            None => {
                let limit = self.timeout.as_secs();
                bail!("the test bed was stopped after {limit} s; its console is in {}", console.display())
            }
        }
        back_ends.into_iter().try_for_each(Running::ended)?;
        self.collect(console)
    }

    /// Boots L1 with the caller's terminal as its console. Ctrl-] and then x ends QEMU.
    pub(crate) fn interact(&self, script: &str) -> Result<Outcome> {
        self.prepare(script)?;
        let mut command = self.qemu();
        command.args(["-serial", "mon:stdio", "-echr", QEMU_ESCAPE]);
        let status = wait(&mut start(&mut command)?, None)?;
        if !status.is_some_and(|status| status.success()) {
            bail!("the test bed's QEMU failed");
        }
        self.collect(self.folder.join("console.log"))
    }

    fn prepare(&self, script: &str) -> Result<()> {
        let run = self.tree.join("run");
        std::fs::write(&run, format!("{script}\n"))
            .with_context(|| format!("cannot write {}", run.display()))?;
        images::ext4(&self.tree, &self.folder.join("tree.img"), None)?;
        let start = images::bed_file(self.workspace, "l1-start");
        images::overlay(&[("start", &start)], &self.folder.join("overlay"))?;
        let initrd = self.folder.join("initrd");
        let mut all = std::fs::read(self.tree.join("initrd"))?;
        all.extend(std::fs::read(self.folder.join("overlay"))?);
        std::fs::write(&initrd, all).with_context(|| format!("cannot write {}", initrd.display()))?;
        File::create(self.folder.join("results.img"))?.set_len(RESULTS_SIZE)?;
        Ok(())
    }

    fn qemu(&self) -> Command {
        let mut command = process::program("qemu-system-aarch64");
        let modules = self.modules.join(",");
        command
            .current_dir(&self.folder)
            .args(["-machine", "virt,virtualization=on,gic-version=3", "-accel", "tcg,thread=multi"])
            // Pointer authentication and SVE cost a multiple of the time under emulation.
            .args(["-cpu", "max,sve=off,pauth=off"])
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()])
            .args(["-display", "none", "-nic", "none", "-no-reboot", "-kernel"])
            .arg(&self.ready.guest.kernel)
            .arg("-initrd")
            .arg(self.folder.join("initrd"))
            .arg("-append")
            .arg(format!("console=ttyAMA0 quiet loglevel=1 panic=-1 root=serial:base ro modules={modules}"));
        let disks = [
            ("base", &self.ready.guest.base_image, "on"),
            ("tree", &self.folder.join("tree.img"), "on"),
            ("results", &self.folder.join("results.img"), "off"),
        ];
        for (name, image, read_only) in disks {
            // A comma in a path would end the value: QEMU takes two for one.
            let image = image.display().to_string().replace(',', ",,");
            command
                .arg("-drive")
                .arg(format!("if=none,id={name},format=raw,read-only={read_only},file={image}"))
                .arg("-device")
                .arg(format!("virtio-blk-device,drive={name},serial={name}"));
        }
        self.served.attach(&mut command, self.memory_mib);
        command
    }

    /// Unpacks what L1 left on the results disk: a tar file from its first byte on.
    fn collect(&self, console: PathBuf) -> Result<Outcome> {
        let results = self.folder.join("results");
        recreate(&results)?;
        let mut tar = process::program("tar");
        tar.args(["--extract", "--no-same-owner", "--file"]).arg(self.folder.join("results.img"));
        process::output(tar.arg("--directory").arg(&results))?;
        let status =
            std::fs::read_to_string(results.join("status")).ok().and_then(|text| text.trim().parse().ok());
        for scratch in ["tree.img", "results.img", "initrd", "overlay"] {
            std::fs::remove_file(self.folder.join(scratch)).ok();
        }
        Ok(Outcome { status, results, console })
    }
}

/// A command line from words.
pub(crate) fn command_line<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    words.into_iter().map(shell_quote).collect::<Vec<_>>().join(" ")
}

fn start(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot start `{}`", process::display(command)))
}

/// Waits for the end, or kills at the deadline and returns `None`.
fn wait(child: &mut Child, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
    let Some(deadline) = deadline else { return Ok(Some(child.wait()?)) };
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Hands on lines as they come, and keeps them in a file.
fn copy_lines(from: impl std::io::Read, log: &Path, mut on_line: impl FnMut(&str)) -> Result<()> {
    let mut log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        log.write_all(&line)?;
        on_line(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_past_its_deadline_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(wait(&mut child, Some(Instant::now())).unwrap().is_none());
    }

    #[test]
    fn a_child_that_ends_in_time_gives_its_status() {
        let mut child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let status = wait(&mut child, Some(Instant::now() + Duration::from_secs(100))).unwrap().unwrap();
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn lines_lose_their_ends_on_the_way_but_not_in_the_log() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut lines = Vec::new();
        copy_lines(&b"one\r\ntwo\nrest"[..], log.path(), |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["one", "two", "rest"]);
        assert_eq!(std::fs::read(log.path()).unwrap(), b"one\r\ntwo\nrest");
    }

    #[test]
    fn words_of_a_command_line_stay_words() {
        assert_eq!(command_line(["sh", "/bed/script", "a b"]), "sh /bed/script 'a b'");
    }
}
