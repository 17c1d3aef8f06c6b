//! What a plugin says of itself, readable from its file without running it.

use crate::options::{OptionKind, OptionSpec, Presence};

/// Name of the ELF section that holds the descriptor as JSON.
pub const SECTION: &str = ".gvmm.plugin";

/// Version of the plugin interface that this crate speaks, `(major, minor)`.
///
/// A plugin says which version it needs ([`Kind::api`]). It loads when its major version is equal and its minor version
/// is not above that of the VMM.
pub const API_VERSION: (u16, u16) = (0, 2);

/// The descriptor of a plugin. Made by [`export_plugin!`](crate::export_plugin), never at run time.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// Unique id in reverse-domain form, such as `org.example.thermometer`.
    pub id: &'static str,
    /// Short name, the file name without `.so`.
    pub name: &'static str,
    /// Version of the plugin.
    pub version: &'static str,
    /// Who makes it.
    pub vendor: &'static str,
    /// Where to read more; may be empty.
    pub url: &'static str,
    /// One sentence for lists.
    pub description: &'static str,
    /// SPDX licence expression.
    pub license: &'static str,
    /// What kind of device it makes.
    pub kind: Kind,
    /// The options it takes.
    pub options: &'static [OptionSpec],
    /// Host extensions without which it cannot work, such as `gvmm.console/1`.
    pub requires: &'static [&'static str],
    /// System calls it makes beyond those of the queue worker, memory, files and eventfds; for the sandbox.
    pub syscalls: &'static [&'static str],
}

/// Kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Registers in the trap window and a device-tree node of its own.
    Mmio,
    /// A virtio device of this type (virtio 1.2, 5).
    Virtio(u32),
    /// A device on the PCI bus that is not virtio.
    Pci,
}

impl Kind {
    /// The version of the plugin interface that brought the kind, which is what a plugin of it needs.
    pub const fn api(self) -> (u16, u16) {
        match self {
            Self::Mmio | Self::Virtio(_) => (0, 1),
            Self::Pci => (0, 2),
        }
    }
}

/// Length in bytes of the JSON form.
pub const fn json_len(descriptor: &Descriptor) -> usize {
    write_json::<0>(descriptor).1
}

/// The JSON form, `N` being [`json_len`].
pub const fn json<const N: usize>(descriptor: &Descriptor) -> [u8; N] {
    write_json::<N>(descriptor).0
}

/// Appends to a buffer of fixed size in constant evaluation; what does not fit is only counted.
struct Json<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Json<N> {
    const fn byte(mut self, byte: u8) -> Self {
        if self.len < N {
            self.bytes[self.len] = byte;
        }
        self.len += 1;
        self
    }

    const fn raw(mut self, text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            self = self.byte(bytes[i]);
            i += 1;
        }
        self
    }

    /// A JSON string (RFC 8259, 7).
    const fn string(mut self, text: &str) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let bytes = text.as_bytes();
        self = self.byte(b'"');
        let mut i = 0;
        while i < bytes.len() {
            let byte = bytes[i];
            self = match byte {
                b'"' | b'\\' => self.byte(b'\\').byte(byte),
                b'\n' => self.raw("\\n"),
                0..0x20 => self.raw("\\u00").byte(HEX[(byte >> 4) as usize]).byte(HEX[(byte & 15) as usize]),
                _ => self.byte(byte),
            };
            i += 1;
        }
        self.byte(b'"')
    }

    const fn field(self, name: &str, value: &str) -> Self {
        self.byte(b'"').raw(name).raw("\":").string(value).byte(b',')
    }

    const fn number(mut self, value: u64) -> Self {
        if value >= 10 {
            self = self.number(value / 10);
        }
        self.byte(b'0' + (value % 10) as u8)
    }

    const fn strings(mut self, list: &[&str]) -> Self {
        self = self.byte(b'[');
        let mut i = 0;
        while i < list.len() {
            if i > 0 {
                self = self.byte(b',');
            }
            self = self.string(list[i]);
            i += 1;
        }
        self.byte(b']')
    }

    const fn option(mut self, option: &OptionSpec) -> Self {
        self = self.byte(b'{').field("name", option.name).field("help", trim(option.help));
        self = match option.presence {
            Presence::Required => self.raw("\"required\":true,"),
            Presence::Optional => self,
            Presence::Default(value) => self.field("default", value),
        };
        self = match option.kind {
            OptionKind::Text => self.raw("\"type\":\"text\""),
            OptionKind::Path(access) => self.raw("\"type\":\"path\",\"access\":").string(access.word()),
            OptionKind::Flag => self.raw("\"type\":\"flag\""),
            OptionKind::Fd => self.raw("\"type\":\"fd\""),
            OptionKind::Integer { min, max } => self.raw("\"type\":\"integer\"").range(min, max),
            OptionKind::Size { min, max } => self.raw("\"type\":\"size\"").range(min, max),
            OptionKind::Choice(words) => self.raw("\"type\":\"choice\",\"choices\":").strings(words),
        };
        self.byte(b'}')
    }

    const fn range(self, min: u64, max: u64) -> Self {
        self.raw(",\"min\":").number(min).raw(",\"max\":").number(max)
    }
}

/// Without the white space that doc comments bring at either end.
const fn trim(text: &str) -> &str {
    text.trim_ascii()
}

const fn write_json<const N: usize>(d: &Descriptor) -> ([u8; N], usize) {
    let mut json = Json::<N> { bytes: [0; N], len: 0 };
    let (major, minor) = d.kind.api();
    json = json.raw("{\"api\":[").number(major as u64).byte(b',').number(minor as u64).raw("],");
    json = json.field("id", d.id).field("name", d.name).field("version", d.version).field("vendor", d.vendor);
    json = json.field("url", d.url).field("description", d.description).field("license", d.license);
    json = match d.kind {
        Kind::Mmio => json.raw("\"kind\":\"mmio\","),
        Kind::Virtio(number) => {
            json.raw("\"kind\":\"virtio\",\"virtio_type\":").number(number as u64).byte(b',')
        }
        Kind::Pci => json.raw("\"kind\":\"pci\","),
    };
    json = json.raw("\"requires\":").strings(d.requires).raw(",\"syscalls\":").strings(d.syscalls);
    json = json.raw(",\"options\":[");
    let mut i = 0;
    while i < d.options.len() {
        if i > 0 {
            json = json.byte(b',');
        }
        json = json.option(&d.options[i]);
        i += 1;
    }
    json = json.raw("]}");
    (json.bytes, json.len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Descriptor = Descriptor {
        id: "org.example.sample",
        name: "sample",
        version: "1.2.3",
        vendor: "Example \"quoted\" \\ Inc.",
        url: "",
        description: "line\nbreak\ttab",
        license: "MIT",
        kind: Kind::Virtio(4),
        options: &[
            OptionSpec::required("disk", OptionKind::Path(crate::options::PathAccess::ReadWrite))
                .help(" A disk. "),
            OptionSpec::with_default("queues", "1", OptionKind::Integer { min: 1, max: 65535 }),
            OptionSpec::optional("mode", OptionKind::Choice(&["a", "b"])),
        ],
        requires: &["gvmm.console/1"],
        syscalls: &[],
    };

    #[test]
    fn json_made_at_compile_time_is_valid_and_complete() {
        const LEN: usize = json_len(&SAMPLE);
        static BYTES: [u8; LEN] = json::<LEN>(&SAMPLE);
        let value: serde_json::Value = serde_json::from_slice(&BYTES).unwrap();
        assert_eq!(value["vendor"], SAMPLE.vendor);
        assert_eq!(value["description"], SAMPLE.description);
        assert_eq!(value["virtio_type"], 4);
        assert_eq!(value["options"][0]["help"], "A disk.");
        assert_eq!(value["options"][0]["required"], true);
        assert_eq!(value["options"][1]["max"], 65535);
        assert_eq!(value["options"][1]["default"], "1");
        assert_eq!(value["options"][2]["choices"][1], "b");
        assert_eq!(value["requires"][0], "gvmm.console/1");
    }

    #[cfg(feature = "host")]
    #[test]
    fn json_and_descriptor_make_the_same_manifest() {
        use crate::host::Manifest;
        const LEN: usize = json_len(&SAMPLE);
        let read: Manifest = serde_json::from_slice(&json::<LEN>(&SAMPLE)).unwrap();
        assert_eq!(read, Manifest::from(&SAMPLE));
        assert_eq!(read.api, (0, 1), "what it needs is older than this crate");
    }

    #[cfg(feature = "host")]
    #[test]
    fn a_kind_that_is_newer_needs_a_newer_host() {
        use crate::host::Manifest;
        const CARD: Descriptor = Descriptor { kind: Kind::Pci, ..SAMPLE };
        const LEN: usize = json_len(&CARD);
        let read: Manifest = serde_json::from_slice(&json::<LEN>(&CARD)).unwrap();
        assert_eq!(read, Manifest::from(&CARD));
        assert_eq!((read.kind.as_str(), read.api, read.virtio_type), ("pci", (0, 2), None));
    }
}
