//! Writing a flattened tree, version 17.

use super::{Node, Tree};

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const LAST_COMPATIBLE: u32 = 16;
const HEADER: usize = 40;

#[derive(Default)]
struct Writer {
    structure: Vec<u8>,
    names: Vec<u8>,
}

impl Writer {
    fn word(&mut self, word: usize) {
        // A tree of 4 GiB cannot be built: its parts come from a tree that was read.
        self.structure.extend(u32::try_from(word).unwrap_or(u32::MAX).to_be_bytes());
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.structure.extend(bytes);
        let length = self.structure.len().next_multiple_of(4);
        self.structure.resize(length, 0);
    }

    fn name(&mut self, name: &str) -> usize {
        let with_end: Vec<u8> = name.bytes().chain([0]).collect();
        let known = self.names.windows(with_end.len()).position(|window| window == with_end);
        known.unwrap_or_else(|| {
            let at = self.names.len();
            self.names.extend(with_end);
            at
        })
    }

    fn node(&mut self, node: &Node) {
        self.word(1);
        let name: Vec<u8> = node.name.bytes().chain([0]).collect();
        self.padded(&name);
        for property in &node.properties {
            self.word(3);
            self.word(property.value.len());
            let name = self.name(&property.name);
            self.word(name);
            self.padded(&property.value);
        }
        for child in &node.children {
            self.node(child);
        }
        self.word(2);
    }
}

impl Tree {
    /// The tree as bytes, without slack.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.node(&self.root);
        writer.word(9);

        let reservations: Vec<u8> = self
            .reservations
            .iter()
            .chain([&(0, 0)])
            .flat_map(|(address, size)| [address.to_be_bytes(), size.to_be_bytes()].concat())
            .collect();
        let structure = HEADER + reservations.len();
        let names = structure + writer.structure.len();
        let total = names + writer.names.len();
        let header = [
            MAGIC,
            total as u32,
            structure as u32,
            names as u32,
            HEADER as u32,
            VERSION,
            LAST_COMPATIBLE,
            self.boot_cpu,
            writer.names.len() as u32,
            writer.structure.len() as u32,
        ];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.extend(reservations);
        bytes.extend(writer.structure);
        bytes.extend(writer.names);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_name_is_stored_once() {
        let mut root = Node::new("");
        for name in ["a", "b"] {
            let mut child = Node::new(name);
            child.set_u32("label", 1);
            root.children.push(child);
        }
        let bytes = Tree { root, ..Tree::default() }.write();
        assert_eq!(bytes.windows(6).filter(|window| window == b"label\0").count(), 1);
    }
}
