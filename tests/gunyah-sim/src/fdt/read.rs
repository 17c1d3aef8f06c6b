//! Reading a flattened tree (devicetree specification, chapter 5).

use super::{Node, Property, Tree};

const MAGIC: u32 = 0xd00d_feed;
const HEADER: usize = 40;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
/// Deeper than any tree of a machine; bounds the recursion over hostile input.
const MAX_DEPTH: usize = 32;

/// `totalsize` of the tree that starts at `bytes`, if it has a header at all.
pub(crate) fn total_size(bytes: &[u8]) -> Option<usize> {
    (u32_at(bytes, 0)? == MAGIC).then(|| u32_at(bytes, 4)).flatten().map(|size| size as usize)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset.checked_add(4)?)?.try_into().ok().map(u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..offset.checked_add(8)?)?.try_into().ok().map(u64::from_be_bytes)
}

fn text_at(bytes: &[u8], offset: usize) -> Option<&str> {
    let tail = bytes.get(offset..)?;
    let end = tail.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&tail[..end]).ok()
}

impl Tree {
    /// Reads the tree at the head of `bytes`; the rest is slack.
    pub(crate) fn read(bytes: &[u8]) -> Result<Tree, String> {
        let total = total_size(bytes).ok_or("no device tree header")?;
        let bytes = bytes.get(..total).ok_or("totalsize is larger than the range given")?;
        let field = |offset| u32_at(bytes, offset).ok_or("header is cut short");
        let (structure, names, reservations) = (field(8)? as usize, field(12)? as usize, field(16)? as usize);
        let (version, last_compatible) = (field(20)?, field(24)?);
        if total < HEADER || version < 17 || last_compatible > 17 {
            return Err(format!("version {version} (compatible down to {last_compatible}) is not supported"));
        }
        let mut reader = Reader { bytes, at: structure, names };
        if reader.token()? != BEGIN_NODE {
            return Err("the structure does not begin with a node".to_owned());
        }
        let root = reader.node(0)?;
        if reader.token()? != END {
            return Err("the structure goes on after the root node".to_owned());
        }
        Ok(Tree { reservations: read_reservations(bytes, reservations)?, boot_cpu: field(28)?, root })
    }
}

fn read_reservations(bytes: &[u8], mut at: usize) -> Result<Vec<(u64, u64)>, String> {
    let mut found = Vec::new();
    loop {
        let pair = u64_at(bytes, at).zip(u64_at(bytes, at.saturating_add(8)));
        match pair.ok_or("the reservation block has no end")? {
            (0, 0) => return Ok(found),
            pair => found.push(pair),
        }
        at += 16;
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    names: usize,
}

impl Reader<'_> {
    fn word(&mut self) -> Result<u32, String> {
        let word = u32_at(self.bytes, self.at).ok_or("the structure is cut short")?;
        self.at += 4;
        Ok(word)
    }

    fn token(&mut self) -> Result<u32, String> {
        loop {
            match self.word()? {
                NOP => {}
                token => return Ok(token),
            }
        }
    }

    fn skip(&mut self, length: usize) -> Result<(), String> {
        let end = self.at.checked_add(length).and_then(|end| end.checked_next_multiple_of(4));
        self.at = end.filter(|end| *end <= self.bytes.len()).ok_or("the structure is cut short")?;
        Ok(())
    }

    /// Reads a node whose begin token has been taken.
    fn node(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("nodes are nested deeper than {MAX_DEPTH}"));
        }
        let name = text_at(self.bytes, self.at).ok_or("a node name has no end")?.to_owned();
        self.skip(name.len() + 1)?;
        let mut node = Node { name, ..Node::default() };
        loop {
            match self.token()? {
                PROPERTY => node.properties.push(self.property()?),
                BEGIN_NODE => node.children.push(self.node(depth + 1)?),
                END_NODE => return Ok(node),
                token => return Err(format!("unexpected token {token:#x} in node {:?}", node.name)),
            }
        }
    }

    fn property(&mut self) -> Result<Property, String> {
        let length = self.word()? as usize;
        let name = self.word()? as usize;
        let name = self.names.checked_add(name).and_then(|at| text_at(self.bytes, at));
        let name = name.ok_or("a property name lies outside the strings")?.to_owned();
        let end = self.at.checked_add(length).ok_or("a property is too long")?;
        let value = self.bytes.get(self.at..end).ok_or("a property is cut short")?.to_vec();
        self.skip(length)?;
        Ok(Property { name, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut root = Node::new("");
        root.set_strings("compatible", &["linux,dummy"]);
        let mut chosen = Node::new("chosen");
        chosen.set_u64("kaslr-seed", 1);
        root.children.push(chosen);
        Tree { reservations: vec![(0x1000, 0x2000)], boot_cpu: 0, root }.write()
    }

    #[test]
    fn reads_what_the_writer_wrote() {
        let bytes = sample();
        let tree = Tree::read(&bytes).unwrap();
        assert_eq!(tree.reservations, [(0x1000, 0x2000)]);
        assert_eq!(
            tree.root.child("chosen").and_then(|node| node.property("kaslr-seed")).map(<[u8]>::len),
            Some(8)
        );
        assert_eq!(tree.write(), bytes);
    }

    #[test]
    fn every_cut_of_a_tree_is_refused_without_a_panic() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(Tree::read(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn every_single_wrong_byte_is_survived() {
        let bytes = sample();
        for at in 0..bytes.len() {
            for value in [0, 1, 4, 0x7f, 0xff] {
                let mut hostile = bytes.clone();
                hostile[at] = value;
                let _ = Tree::read(&hostile);
            }
        }
    }
}
