//! Reading a flattened device tree back (Devicetree Specification 0.4, chapter 5).

use std::collections::BTreeMap;

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// A node with its properties and children.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) properties: BTreeMap<String, Vec<u8>>,
    pub(crate) children: Vec<Node>,
}

impl Node {
    /// The root of a tree. Panics on anything that the format does not allow.
    pub(crate) fn parse(tree: &[u8]) -> Self {
        assert_eq!(be32(tree, 0), MAGIC);
        assert_eq!(be32(tree, 4) as usize, tree.len(), "totalsize");
        let mut reader = Reader { tree, at: be32(tree, 8) as usize, strings: be32(tree, 12) as usize };
        assert_eq!(reader.token(), BEGIN_NODE);
        let root = reader.node();
        assert_eq!(reader.token(), END);
        root
    }

    /// The node at a path such as `/cpus/cpu@0`.
    pub(crate) fn at(&self, path: &str) -> &Node {
        path.split('/').filter(|name| !name.is_empty()).fold(self, |node, name| {
            let mut children = node.children.iter();
            children.find(|child| child.name == name).unwrap_or_else(|| panic!("no {name} of {path}"))
        })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.children.iter().any(|child| child.name == name)
    }

    pub(crate) fn bytes(&self, property: &str) -> &[u8] {
        self.properties.get(property).unwrap_or_else(|| panic!("no {property} in {}", self.name))
    }

    pub(crate) fn cells(&self, property: &str) -> Vec<u32> {
        self.bytes(property).chunks(4).map(|cell| be32(cell, 0)).collect()
    }

    pub(crate) fn longs(&self, property: &str) -> Vec<u64> {
        self.bytes(property).chunks(8).map(|cell| u64::from_be_bytes(cell.try_into().unwrap())).collect()
    }

    pub(crate) fn text(&self, property: &str) -> String {
        String::from_utf8(self.bytes(property).to_vec()).unwrap().trim_end_matches('\0').to_owned()
    }
}

struct Reader<'a> {
    tree: &'a [u8],
    at: usize,
    strings: usize,
}

impl Reader<'_> {
    fn token(&mut self) -> u32 {
        self.at += 4;
        match be32(self.tree, self.at - 4) {
            NOP => self.token(),
            token => token,
        }
    }

    fn string(&self, at: usize) -> String {
        let end = at + self.tree[at..].iter().position(|&byte| byte == 0).unwrap();
        String::from_utf8(self.tree[at..end].to_vec()).unwrap()
    }

    fn skip(&mut self, length: usize) {
        self.at = (self.at + length).next_multiple_of(4);
    }

    fn node(&mut self) -> Node {
        let mut node = Node { name: self.string(self.at), ..Node::default() };
        self.skip(node.name.len() + 1);
        loop {
            match self.token() {
                BEGIN_NODE => node.children.push(self.node()),
                END_NODE => return node,
                PROP => {
                    assert!(node.children.is_empty(), "a property behind a child of {}", node.name);
                    let length = be32(self.tree, self.at) as usize;
                    let name = self.string(self.strings + be32(self.tree, self.at + 4) as usize);
                    let value = self.tree[self.at + 8..self.at + 8 + length].to_vec();
                    assert!(
                        node.properties.insert(name.clone(), value).is_none(),
                        "{name} twice in {}",
                        node.name
                    );
                    self.skip(8 + length);
                }
                token => panic!("token {token}"),
            }
        }
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}
