//! `gvmm plugin new`: begins a plugin, in a crate of its own that builds at once.
//!
//! The sources are those of the tutorial's devices, `tests/counter` and `tests/echo`, which are built and tested with
//! everything else; the other files are in `plugin-api/tools/templates`.

mod api;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::{code, output};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Name of the plugin and its crate: a lower-case letter, then letters, digits and '_'
    name: String,
    /// What the guest sees
    #[arg(long, value_enum)]
    kind: Kind,
    /// The folder `plugin-api` of gvmm's sources; without it, that of the sources around this program or this folder
    #[arg(long, value_name = "PATH", env = "GVMM_PLUGIN_API")]
    api: Option<PathBuf>,
    /// Where the crate's folder is made
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    into: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Registers, an interrupt and a device-tree node
    Mmio,
    /// A virtio device with two queues
    Virtio,
}

/// A file of a new crate: where it is and what it has.
type File = (&'static str, &'static str);

/// Files of every new crate.
const COMMON: &[File] = &[
    ("Cargo.toml", include_str!("../../templates/Cargo.toml.in")),
    ("README.md", include_str!("../../templates/README.md.in")),
    (".gitignore", include_str!("../../templates/gitignore.in")),
    (".cargo/config.toml", include_str!("../../templates/config.toml.in")),
    (".github/workflows/ci.yml", include_str!("../../templates/ci.yml.in")),
];

const MMIO: &[File] = &[
    ("src/lib.rs", include_str!("../../../../tests/counter/src/lib.rs")),
    ("src/device.rs", include_str!("../../../../tests/counter/src/device.rs")),
    ("src/device_test.rs", include_str!("../../../../tests/counter/src/device_test.rs")),
];

const VIRTIO: &[File] = &[
    ("src/lib.rs", include_str!("../../../../tests/echo/src/lib.rs")),
    ("src/device.rs", include_str!("../../../../tests/echo/src/device.rs")),
    ("src/messages.rs", include_str!("../../../../tests/echo/src/messages.rs")),
    ("src/device_test.rs", include_str!("../../../../tests/echo/src/device_test.rs")),
];

pub(crate) fn run(arguments: &Arguments) -> Result<u8, String> {
    let name = arguments.name.as_str();
    check_name(name)?;
    let api = api::find(arguments.api.as_deref())?;
    let folder = arguments.into.join(name);
    make_folder(&folder)?;
    let (files, model) = match arguments.kind {
        Kind::Mmio => (MMIO, "counter"),
        Kind::Virtio => (VIRTIO, "echo"),
    };
    for (path, text) in COMMON {
        let text =
            text.replace("@NAME@", name).replace("@API@", api::VERSION).replace("@PATH@", &quoted(&api)?);
        write(&folder.join(path), &text)?;
    }
    for (path, text) in files {
        write(&folder.join(path), &text.replace(model, name))?;
    }
    output::text(&format!(
        "{} is there. In it, `cargo test` tests the device and `cargo build` makes the plugin; README.md says more.\n",
        folder.display()
    ));
    Ok(code::GOOD)
}

/// The name becomes that of a crate, a file and a node.
fn check_name(name: &str) -> Result<(), String> {
    let letter = |c: char| c.is_ascii_lowercase();
    let good = |c: char| letter(c) || c.is_ascii_digit() || c == '_';
    // A device-tree node name has at most 31 characters (Devicetree Specification 0.4, 2.2.1).
    if name.len() <= 31 && name.starts_with(letter) && name.chars().all(good) && !is_keyword(name) {
        return Ok(());
    }
    Err(format!(
        "name '{name}': use a lower-case letter and then up to 30 letters, digits and '_'; no word of Rust"
    ))
}

/// Words that cargo refuses as the name of a library.
fn is_keyword(name: &str) -> bool {
    const WORDS: &[&str] = &[
        "abstract",
        "as",
        "async",
        "await",
        "become",
        "box",
        "break",
        "const",
        "continue",
        "core",
        "crate",
        "do",
        "dyn",
        "else",
        "enum",
        "extern",
        "false",
        "final",
        "fn",
        "for",
        "gen",
        "if",
        "impl",
        "in",
        "let",
        "loop",
        "macro",
        "match",
        "mod",
        "move",
        "mut",
        "override",
        "priv",
        "proc_macro",
        "pub",
        "ref",
        "return",
        "self",
        "static",
        "std",
        "struct",
        "super",
        "test",
        "trait",
        "true",
        "try",
        "type",
        "typeof",
        "unsafe",
        "unsized",
        "use",
        "virtual",
        "where",
        "while",
        "yield",
        "alloc",
        "gvmm_plugin_api",
    ];
    WORDS.contains(&name)
}

fn make_folder(folder: &Path) -> Result<(), String> {
    fs::create_dir(folder).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => format!("{} exists already: choose another name", folder.display()),
        _ => format!("cannot make {}: {error}", folder.display()),
    })
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    let written = file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(file, text));
    written.map_err(|e| format!("cannot write {}: {e}", file.display()))
}

/// A path as the content of a TOML string.
fn quoted(path: &Path) -> Result<String, String> {
    let text = path.to_str().filter(|text| !text.chars().any(char::is_control));
    let text = text.ok_or_else(|| format!("{}: its name is no text", path.display()))?;
    Ok(text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_crate_can_have_are_refused() {
        for good in ["a", "thermometer", "gpio_16"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in
            ["", "1st", "my-device", "Upper", "a/b", "..", "fn", "test", "gvmm_plugin_api", &"a".repeat(32)]
        {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_place_for_a_name_is_filled() {
        let folder = tempfile::tempdir().unwrap();
        for kind in [Kind::Mmio, Kind::Virtio] {
            let name = format!("new_{kind:?}").to_lowercase();
            let into = folder.path().to_owned();
            run(&Arguments { name: name.clone(), kind, api: None, into }).unwrap();
            let text = |file: &str| fs::read_to_string(folder.path().join(&name).join(file)).unwrap();
            for (file, _) in COMMON {
                assert!(!text(file).contains('@') || *file == ".github/workflows/ci.yml", "{file}");
            }
            assert!(text("src/lib.rs").contains(&format!("id: \"org.example.{name}\"")));
            assert!(!text("src/lib.rs").contains("counter") && !text("src/lib.rs").contains("echo"));
        }
    }

    #[test]
    fn a_folder_that_is_there_is_left_alone() {
        let into = tempfile::tempdir().unwrap();
        fs::create_dir(into.path().join("taken")).unwrap();
        let into = into.path().to_owned();
        let error =
            run(&Arguments { name: "taken".to_owned(), kind: Kind::Mmio, api: None, into }).unwrap_err();
        assert!(error.ends_with("taken exists already: choose another name"), "{error}");
    }
}
