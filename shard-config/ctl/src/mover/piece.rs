//! What one piece of the copy consists of. PURE.

use super::leaves::Leaf;

/// Pages of one leaf: the first of them, and the first that is not of them any more.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) leaf: Leaf,
    pub(super) from: i64,
    pub(super) to: i64,
}

impl Piece {
    pub(super) fn pages(&self) -> i64 {
        self.to - self.from
    }
}

/// What is left of a leaf.
#[derive(Debug)]
pub(super) struct Rest {
    leaf: Leaf,
    from: i64,
}

impl Rest {
    pub(super) fn new(leaf: Leaf) -> Self {
        Self { leaf, from: 0 }
    }

    pub(super) fn page_bytes(&self) -> i64 {
        self.leaf.page_bytes
    }

    /// Its next pages, at most so many (1 or more), and what is left then.
    pub(super) fn next(self, most: i64) -> (Piece, Option<Self>) {
        let Self { leaf, from } = self;
        let to = from.saturating_add(most).min(leaf.pages);
        let left = (to < leaf.pages).then(|| Self { leaf: leaf.clone(), from: to });
        (Piece { leaf, from, to }, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_in_one_piece() {
        let pieces = |pages: i64, most: i64| {
            let leaf = Leaf { table: 0, name: "t".to_owned(), pages, page_bytes: 8192 };
            let (mut all, mut rest) = (Vec::new(), Some(Rest::new(leaf)));
            while let Some(left) = rest {
                let (piece, next) = left.next(most);
                assert_eq!(piece.pages(), piece.to - piece.from);
                all.push((piece.from, piece.to));
                rest = next;
            }
            all
        };
        assert_eq!(pieces(10, 10), [(0, 10)]);
        assert_eq!(pieces(11, 10), [(0, 10), (10, 11)]);
        assert_eq!(pieces(25, 10), [(0, 10), (10, 20), (20, 25)]);
        assert_eq!(pieces(2, 1), [(0, 1), (1, 2)]);
        assert_eq!(pieces(7, i64::MAX), [(0, 7)]);
    }
}
