//! A flattened device tree as a value: read, looked at, changed, written back.

mod read;
mod write;

pub(crate) use read::total_size;

/// One property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Property {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
}

/// One node with everything below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) properties: Vec<Property>,
    pub(crate) children: Vec<Node>,
}

/// A whole tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) reservations: Vec<(u64, u64)>,
    pub(crate) boot_cpu: u32,
    pub(crate) root: Node,
}

/// Big-endian 32-bit cells of a property value; a trailing fragment is dropped.
pub(crate) fn cells(value: &[u8]) -> Vec<u32> {
    value.chunks_exact(4).filter_map(|cell| cell.try_into().ok()).map(u32::from_be_bytes).collect()
}

/// One number of `count` cells (1 or 2) at the head of `cells`.
pub(crate) fn number(cells: &[u32], count: usize) -> Option<u64> {
    cells.get(..count).map(|part| part.iter().fold(0, |value, cell| value << 32 | u64::from(*cell)))
}

/// Splits a string list.
fn strings(value: &[u8]) -> Vec<&str> {
    value
        .strip_suffix(b"\0")
        .unwrap_or(value)
        .split(|byte| *byte == 0)
        .filter_map(|part| std::str::from_utf8(part).ok())
        .collect()
}

impl Node {
    pub(crate) fn new(name: &str) -> Node {
        Node { name: name.to_owned(), ..Node::default() }
    }

    /// The name without its unit address.
    pub(crate) fn base_name(&self) -> &str {
        self.name.split('@').next().unwrap_or_default()
    }

    pub(crate) fn property(&self, name: &str) -> Option<&[u8]> {
        self.properties
            .iter()
            .find(|property| property.name == name)
            .map(|property| property.value.as_slice())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.property(name).is_some()
    }

    /// A property of one cell.
    pub(crate) fn u32(&self, name: &str) -> Option<u32> {
        match cells(self.property(name)?).as_slice() {
            [value] => Some(*value),
            _ => None,
        }
    }

    /// A property's cells; empty where it is missing.
    pub(crate) fn cells(&self, name: &str) -> Vec<u32> {
        self.property(name).map(cells).unwrap_or_default()
    }

    /// The first string of a property.
    pub(crate) fn string(&self, name: &str) -> Option<&str> {
        self.property(name).and_then(|value| strings(value).first().copied())
    }

    /// Whether `compatible` lists `name`.
    pub(crate) fn is_compatible(&self, name: &str) -> bool {
        self.property("compatible").is_some_and(|value| strings(value).contains(&name))
    }

    pub(crate) fn set(&mut self, name: &str, value: Vec<u8>) {
        match self.properties.iter_mut().find(|property| property.name == name) {
            Some(property) => property.value = value,
            None => self.properties.push(Property { name: name.to_owned(), value }),
        }
    }

    pub(crate) fn set_u32(&mut self, name: &str, value: u32) {
        self.set(name, value.to_be_bytes().to_vec());
    }

    pub(crate) fn set_u64(&mut self, name: &str, value: u64) {
        self.set(name, value.to_be_bytes().to_vec());
    }

    pub(crate) fn set_strings(&mut self, name: &str, values: &[&str]) {
        let value = values.iter().flat_map(|text| text.bytes().chain([0])).collect();
        self.set(name, value);
    }

    /// A child by name; a name without unit address matches a child that has one.
    pub(crate) fn child(&self, name: &str) -> Option<&Node> {
        self.children.iter().find(|child| matches_component(child, name))
    }

    /// Like [`Node::child`], to change it.
    pub(crate) fn child_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.children.iter_mut().find(|child| matches_component(child, name))
    }

    /// This node and everything below it, parents first.
    pub(crate) fn walk(&self) -> Vec<&Node> {
        let mut found = vec![self];
        let mut next = 0;
        while let Some(node) = found.get(next).copied() {
            found.extend(node.children.iter());
            next += 1;
        }
        found
    }
}

fn matches_component(node: &Node, component: &str) -> bool {
    node.name == component || (!component.contains('@') && node.base_name() == component)
}

impl Tree {
    /// The node at an absolute path.
    pub(crate) fn at(&self, path: &str) -> Option<&Node> {
        path.split('/')
            .filter(|component| !component.is_empty())
            .try_fold(&self.root, |node, component| node.child(component))
    }

    /// The node whose `phandle` is `value`.
    pub(crate) fn by_phandle(&self, value: u32) -> Option<&Node> {
        self.root
            .walk()
            .into_iter()
            .find(|node| node.u32("phandle").or_else(|| node.u32("linux,phandle")) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tree {
        let mut gic = Node::new("intc@3fff0000");
        gic.set_u32("phandle", 7);
        gic.set_strings("compatible", &["arm,gic-v3", "other"]);
        let mut root = Node::new("");
        root.set_u32("#address-cells", 2);
        root.children.push(gic);
        Tree { root, ..Tree::default() }
    }

    #[test]
    fn nodes_are_found_by_path_with_and_without_unit_address() {
        let tree = sample();
        assert_eq!(tree.at("/intc").map(|node| node.name.as_str()), Some("intc@3fff0000"));
        assert_eq!(tree.at("/intc@3fff0000").map(Node::base_name), Some("intc"));
        assert_eq!(tree.at("/intc@1"), None);
        assert_eq!(tree.at("/"), Some(&tree.root));
    }

    #[test]
    fn nodes_are_found_by_phandle() {
        assert!(sample().by_phandle(7).is_some_and(|node| node.is_compatible("other")));
        assert_eq!(sample().by_phandle(8), None);
    }

    #[test]
    fn numbers_are_taken_by_cell_count() {
        assert_eq!(number(&[1, 2], 2), Some(0x1_0000_0002));
        assert_eq!(number(&[1, 2], 1), Some(1));
        assert_eq!(number(&[1], 2), None);
    }
}
