//! The machinery behind `config`: a section is declared once, and its struct, parser, defaults and documentation
//! come from that declaration. A reader goes on after a mistake, so that one run reports all of them.

use std::collections::HashMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// From 1.
    pub line: usize,
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {} ({})", self.line, self.message, self.remedy)
    }
}

/// One setting's entry in its section's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    pub name: &'static str,
    /// What may be written, e.g. "a whole number".
    pub expects: &'static str,
    /// The default as TOML, or the bare word `required` or `optional`.
    pub default: &'static str,
    /// Both ends allowed. For numbers only.
    pub range: Option<(i64, i64)>,
    /// One or more lines, each with a leading blank.
    pub doc: &'static [&'static str],
}

/// A section's documentation, as `shardctl config` prints it.
#[derive(Debug, Clone, Copy)]
pub struct SectionDoc {
    /// `[proxy]` or `[[shard]]`.
    pub header: &'static str,
    pub doc: &'static [&'static str],
    pub settings: &'static [Setting],
}

/// What a section's declaration provides.
pub(crate) trait Section: Sized {
    const DOC: SectionDoc;
    /// `None` when a value was missing or wrong; the reader has the mistakes.
    fn read(table: &mut SectionReader<'_, '_>) -> Option<Self>;
}

/// A type that a setting may have.
pub(crate) trait FromToml: Sized {
    const EXPECTS: &'static str;
    /// The value of an `optional` setting that is not there.
    const ABSENT: Option<Self> = None;
    /// `Err` is the message and the remedy.
    fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)>;
    /// For the range check; only numbers have one.
    fn number(&self) -> Option<i64> {
        None
    }
}

/// Declares a section: `"name" field: Type = default in low..=high`, where the default is TOML, `required` or
/// `optional`. The documentation comments are the user's documentation.
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        $name:ident = $header:literal {
            $( $(#[doc = $doc:literal])+ $key:literal $field:ident: $ty:ty = $default:tt $(in $low:literal ..= $high:literal)? ),* $(,)?
        }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $ty, )*
        }

        impl $crate::settings::Section for $name {
            const DOC: $crate::settings::SectionDoc = $crate::settings::SectionDoc {
                header: $header,
                doc: &[$($section_doc),+],
                settings: &[$( $crate::settings::Setting {
                    name: $key,
                    expects: <$ty as $crate::settings::FromToml>::EXPECTS,
                    default: stringify!($default),
                    range: $crate::settings::range!($($low, $high)?),
                    doc: &[$($doc),+],
                } ),*],
            };

            fn read(reader: &mut $crate::settings::SectionReader<'_, '_>) -> Option<Self> {
                // All are read before the first `?`, so that all their mistakes are found.
                $( let $field = reader.setting::<$ty>($key); )*
                Some(Self { $( $field: $field? ),* })
            }
        }
    };
}
macro_rules! range {
    () => {
        None
    };
    ($low:literal, $high:literal) => {
        Some(($low, $high))
    };
}
pub(crate) use {range, section};

/// Where each setting was written: (header, position among equals, key) -> line. Key "" is the header itself.
pub(crate) type Lines = HashMap<(&'static str, usize, &'static str), usize>;

/// Collects mistakes while the file is read.
pub(crate) struct Reader<'t> {
    text: &'t str,
    pub(crate) mistakes: Vec<Mistake>,
    pub(crate) lines: Lines,
}

impl<'t> Reader<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self { text, mistakes: Vec::new(), lines: Lines::new() }
    }

    pub(crate) fn line_of(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|&b| b == b'\n').count()
    }

    pub(crate) fn mistake(&mut self, line: usize, message: impl Into<String>, remedy: impl Into<String>) {
        self.mistakes.push(Mistake { line, message: message.into(), remedy: remedy.into() });
    }

    /// Reads one table as section `S`; `index` tells `[[shard]]`s apart.
    pub(crate) fn section<S: Section>(
        &mut self,
        table: &DeTable<'_>,
        line: usize,
        index: usize,
    ) -> Option<S> {
        let doc = S::DOC;
        self.lines.insert((doc.header, index, ""), line);
        for (key, value) in table {
            let at = self.line_of(key.span().start);
            match doc.settings.iter().find(|setting| setting.name == key.get_ref().as_ref()) {
                Some(setting) => {
                    self.lines.insert((doc.header, index, setting.name), self.line_of(value.span().start));
                }
                None => {
                    let names = doc.settings.iter().map(|setting| setting.name);
                    let remedy = did_you_mean(key.get_ref(), names);
                    self.mistake(at, format!("{} has no setting \"{}\"", doc.header, key.get_ref()), remedy);
                }
            }
        }
        S::read(&mut SectionReader { reader: self, table, doc, line })
    }
}

pub(crate) struct SectionReader<'r, 't> {
    reader: &'r mut Reader<'t>,
    table: &'r DeTable<'r>,
    doc: SectionDoc,
    line: usize,
}

impl SectionReader<'_, '_> {
    pub(crate) fn setting<T: FromToml>(&mut self, name: &'static str) -> Option<T> {
        let setting = self.doc.settings.iter().find(|setting| setting.name == name)?;
        let written = self.table.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value);
        let Some(value) = written else {
            return match setting.default {
                "required" => {
                    let message = format!("{} has no \"{name}\"", self.doc.header);
                    self.reader.mistake(self.line, message, format!("add {name} = {}", setting.expects));
                    None
                }
                "optional" => T::ABSENT,
                // A default is a constant of ours; `config::tests` reads every one.
                default => DeValue::parse(default).ok().and_then(|value| T::from_toml(value.get_ref()).ok()),
            };
        };
        let line = self.reader.line_of(value.span().start);
        let parsed = match T::from_toml(value.get_ref()) {
            Ok(parsed) => parsed,
            Err((message, remedy)) => {
                self.reader.mistake(line, format!("{name}: {message}"), remedy);
                return None;
            }
        };
        if let (Some((low, high)), Some(number)) = (setting.range, parsed.number())
            && !(low..=high).contains(&number)
        {
            let remedy = format!("write a number from {low} to {high}");
            self.reader.mistake(line, format!("{name}: {number} is out of range"), remedy);
            return None;
        }
        Some(parsed)
    }
}

/// The remedy for an unknown name.
pub(crate) fn did_you_mean<'n>(wrong: &str, names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.collect();
    let nearest = names.iter().map(|name| (distance(wrong, name), name)).min();
    match nearest {
        // A third of the letters wrong is still a slip; more is another word.
        Some((distance, name)) if distance <= (name.len() / 3).max(1) => format!("did you mean \"{name}\"?"),
        _ => format!("there are: {}", names.join(", ")),
    }
}

/// Levenshtein's edit distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = previous[0];
        previous[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = previous[j + 1];
            previous[j + 1] = replaced.min(diagonal + 1).min(previous[j] + 1);
        }
    }
    previous[b.len()]
}

fn wrong_type<T>(value: &DeValue<'_>, expects: &str) -> Result<T, (String, String)> {
    Err((format!("this is {}", kind_of(value)), format!("write {expects}")))
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

pub(crate) fn text<'v>(value: &'v DeValue<'_>, expects: &str) -> Result<&'v str, (String, String)> {
    match value {
        DeValue::String(text) => Ok(text),
        _ => wrong_type(value, expects),
    }
}

impl FromToml for String {
    const EXPECTS: &'static str = "\"text\"";

    fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)> {
        let text = text(value, Self::EXPECTS)?;
        if text.is_empty() {
            return Err(("this is empty".into(), "write some text, or leave the setting out".into()));
        }
        Ok(text.to_owned())
    }
}

impl FromToml for bool {
    const EXPECTS: &'static str = "true or false";

    fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)> {
        let DeValue::Boolean(value) = value else { return wrong_type(value, Self::EXPECTS) };
        Ok(*value)
    }
}

impl FromToml for crate::Secret {
    const EXPECTS: &'static str = "\"secret\"";

    fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)> {
        text(value, Self::EXPECTS).map(Self::new)
    }
}

macro_rules! whole_number {
    ($($ty:ty)+) => { $(
        impl FromToml for $ty {
            const EXPECTS: &'static str = "a whole number";

            fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)> {
                let DeValue::Integer(number) = value else { return wrong_type(value, Self::EXPECTS) };
                <$ty>::from_str_radix(number.as_str(), number.radix()).map_err(|_| {
                    (format!("{} is out of range", number.as_str()), format!("write a number from 0 to {}", <$ty>::MAX))
                })
            }

            fn number(&self) -> Option<i64> {
                i64::try_from(*self).ok()
            }
        }
    )+ };
}
whole_number!(u16 u32 u64);

impl<T: FromToml> FromToml for Option<T> {
    const EXPECTS: &'static str = T::EXPECTS;
    const ABSENT: Option<Self> = Some(None);

    fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)> {
        T::from_toml(value).map(Some)
    }

    fn number(&self) -> Option<i64> {
        self.as_ref().and_then(T::number)
    }
}

impl<T: FromToml> FromToml for Vec<T> {
    const EXPECTS: &'static str = "a list";

    fn from_toml(value: &DeValue<'_>) -> Result<Self, (String, String)> {
        let DeValue::Array(items) = value else { return wrong_type(value, &format!("[{}]", T::EXPECTS)) };
        items.iter().map(|item: &Spanned<DeValue<'_>>| T::from_toml(item.get_ref())).collect()
    }
}

/// Reads a setting that is one of a few words.
macro_rules! words {
    ($name:ident { $($word:literal => $variant:ident),+ $(,)? }) => {
        impl $name {
            /// As written in the configuration, in metrics and on screens.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $word ),+ }
            }
        }

        impl $crate::settings::FromToml for $name {
            const EXPECTS: &'static str = concat!("one of", $( " \"", $word, "\"" ),+);

            fn from_toml(value: &toml::de::DeValue<'_>) -> Result<Self, (String, String)> {
                match $crate::settings::text(value, Self::EXPECTS)? {
                    $( $word => Ok(Self::$variant), )+
                    other => Err((
                        format!("there is no \"{other}\""),
                        $crate::settings::did_you_mean(other, [$($word),+].into_iter()),
                    )),
                }
            }
        }
    };
}
pub(crate) use words;
