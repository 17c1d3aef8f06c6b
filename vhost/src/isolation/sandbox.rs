//! What the process of a device gives up, built from what the plugin's descriptor declares.
//!
//! In this order: descriptors that are not the device's, resource limits, namespaces and capabilities, system calls,
//! files. Files are given up in two steps, since loading a plugin reads the libraries that it is linked to.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use gvmm_plugin_api::host::Manifest;
use gvmm_plugin_api::host::manifest::ManifestKind;
use gvmm_plugin_api::options::Values;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::syscalls;

/// The newest rules that are asked for; older kernels have some of them.
const LANDLOCK: ABI = ABI::V6;
/// Where libraries are, for the loader.
const LIBRARIES: &[&str] =
    &["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"];
/// Private memory of the process in bytes; guest memory is shared and does not count.
const MAX_DATA: u64 = 1 << 30;
/// Open files of the process.
const MAX_FILES: u64 = 512;
/// Bit of `CAP_DAC_OVERRIDE`: root keeps the disk images of others. Landlock says which files those are.
const CAP_DAC_OVERRIDE: u32 = 1 << 1;
/// `_LINUX_CAPABILITY_VERSION_3` (`capset(2)`).
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Closes every descriptor above standard error but these: they are not the device's.
pub(crate) fn close_others(keep: &[RawFd]) {
    let mut keep: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for last in keep.into_iter().map(Some).chain([None]) {
        let end = last.map_or(u32::MAX, |fd| fd - 1);
        if first <= end {
            // SAFETY: called before the program has opened anything: what is closed was inherited and nobody's. A
            // kernel without the call leaves them open.
            unsafe { libc::syscall(libc::SYS_close_range, first, end, 0) };
        }
        first = last.map_or(u32::MAX, |fd| fd + 1);
    }
}

/// A sandbox that has been entered as far as loading the plugin allows.
pub(crate) struct Entered {
    paths: Vec<(PathBuf, BitFlags<AccessFs>)>,
    /// What could not be applied, with the reason.
    pub(crate) missing: Vec<String>,
}

/// Gives up everything but what the plugin needs to be loaded. No other thread may be running.
///
/// # Errors
///
/// For a descriptor that asks for what no sandbox gives.
pub(crate) fn enter(
    plugin: &Path,
    manifest: &Manifest,
    values: &Values,
    accepts: bool,
) -> Result<Entered, String> {
    let filters = syscalls::filters(&manifest.syscalls, accepts)
        .map_err(|e| format!("plugin {}: {e}", manifest.name))?;
    let mut missing = Vec::new();
    limit(&mut missing);
    leave_namespaces(syscalls::wants_sockets(&manifest.syscalls), &mut missing);
    drop_capabilities(&mut missing);
    let paths = declared_paths(manifest, values);
    let read = AccessFs::from_read(LANDLOCK);
    let libraries = LIBRARIES.iter().map(|path| (PathBuf::from(path), read));
    let loading = paths.iter().cloned().chain(libraries).chain([(plugin.to_owned(), read)]);
    restrict_files(loading, &mut missing);
    for filter in &filters {
        if let Err(error) = seccompiler::apply_filter(filter) {
            missing.push(format!("system call filter ({error})"));
        }
    }
    Ok(Entered { paths, missing })
}

impl Entered {
    /// The plugin is loaded: gives up the libraries as well.
    pub(crate) fn finish(mut self) -> Vec<String> {
        // What is missing now was missing before.
        restrict_files(self.paths.into_iter(), &mut Vec::new());
        std::mem::take(&mut self.missing)
    }
}

fn limit(missing: &mut Vec<String>) {
    let limits =
        [(Resource::RLIMIT_CORE, 0), (Resource::RLIMIT_DATA, MAX_DATA), (Resource::RLIMIT_NOFILE, MAX_FILES)];
    for (resource, wanted) in limits {
        let limited = getrlimit(resource).and_then(|(_, hard)| {
            let limit = wanted.min(hard);
            setrlimit(resource, limit, limit)
        });
        if let Err(errno) = limited {
            missing.push(format!("resource limit {resource:?} ({})", errno.desc()));
        }
    }
}

/// Moves into namespaces without network, without others' System V objects, with a host name of its own.
fn leave_namespaces(keep_network: bool, missing: &mut Vec<String>) {
    let mut spaces = CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if !keep_network {
        spaces |= CloneFlags::CLONE_NEWNET;
    }
    // Who is not root may do that in a user namespace, where the kernel allows those.
    let left = unshare(spaces).or_else(|_| unshare(spaces | CloneFlags::CLONE_NEWUSER));
    if let Err(errno) = left {
        missing.push(format!("namespaces ({})", errno.desc()));
    }
}

fn drop_capabilities(missing: &mut Vec<String>) {
    let kept = if nix::unistd::geteuid().is_root() { CAP_DAC_OVERRIDE } else { 0 };
    let header = [CAPABILITY_VERSION, 0];
    // Effective, permitted, inheritable; then their upper halves.
    let sets = [kept, kept, 0, 0, 0, 0];
    // SAFETY: header and sets have the form of version 3, and the kernel only reads them.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) } != 0 {
        let error = std::io::Error::last_os_error();
        // Capabilities that the process does not have cannot be kept either.
        // SAFETY: as above.
        if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), [0_u32; 6].as_ptr()) } != 0 {
            missing.push(format!("capabilities ({error})"));
        }
    }
}

/// The paths among the options, and what may be done to each.
fn declared_paths(manifest: &Manifest, values: &Values) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let path = |option: &gvmm_plugin_api::host::manifest::ManifestOption| {
        let ManifestKind::Path { access } = &option.kind else { return None };
        let path = PathBuf::from(values.get(&option.name)?);
        Some(match access.as_str() {
            "read" => (path, AccessFs::from_read(LANDLOCK) & !AccessFs::Execute),
            // The folder of a file that is to be made.
            "create" => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                (
                    folder.unwrap_or(Path::new(".")).to_owned(),
                    AccessFs::from_all(LANDLOCK) & !AccessFs::Execute,
                )
            }
            _ => (path, AccessFs::from_all(LANDLOCK) & !AccessFs::Execute),
        })
    };
    manifest.options.iter().filter_map(path).collect()
}

/// Allows access to these paths and to no others.
fn restrict_files(paths: impl Iterator<Item = (PathBuf, BitFlags<AccessFs>)>, missing: &mut Vec<String>) {
    let restricted = || -> Result<RulesetStatus, landlock::RulesetError> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::AbstractUnixSocket | Scope::Signal)?
            .create()?;
        for (path, access) in paths {
            // What is not there, the plugin will say.
            let Ok(fd) = PathFd::new(&path) else { continue };
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
            rules = rules.add_rule(PathBeneath::new(fd, access))?;
        }
        Ok(rules.restrict_self()?.ruleset)
    };
    match restricted() {
        Ok(RulesetStatus::NotEnforced) => {
            missing.push("Landlock (this kernel has none, or it is switched off)".to_owned());
        }
        Ok(_) => {}
        Err(error) => missing.push(format!("Landlock ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use gvmm_plugin_api::descriptor::{Descriptor, Kind};
    use gvmm_plugin_api::options::{OptionKind, OptionSpec, PathAccess};

    use super::*;

    const SAMPLE: Descriptor = Descriptor {
        id: "org.example.sample",
        name: "sample",
        version: "1",
        vendor: "",
        url: "",
        description: "",
        license: "",
        kind: Kind::Virtio(4),
        options: &[
            OptionSpec::optional("disk", OptionKind::Path(PathAccess::ReadWrite)),
            OptionSpec::optional("base", OptionKind::Path(PathAccess::Read)),
            OptionSpec::optional("log", OptionKind::Path(PathAccess::Create)),
            OptionSpec::optional("name", OptionKind::Text),
        ],
        requires: &[],
        syscalls: &[],
    };

    #[test]
    fn only_declared_paths_are_opened_and_as_declared() {
        let manifest = Manifest::from(&SAMPLE);
        let values =
            manifest.check([("disk", "/d"), ("base", "/b"), ("log", "l"), ("name", "/etc")]).unwrap();
        let paths = declared_paths(&manifest, &values);
        let names: Vec<_> = paths.iter().map(|(path, _)| path.to_str().unwrap()).collect();
        assert_eq!(names, ["/d", "/b", "."]);
        assert!(paths.iter().all(|(_, access)| !access.contains(AccessFs::Execute)));
        assert!(paths[0].1.contains(AccessFs::WriteFile) && !paths[1].1.contains(AccessFs::WriteFile));
    }
}
