// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What the rules need to know of a Markdown text: its links, its headings' anchors, its commands.

use std::collections::BTreeMap;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// One Markdown text, taken apart.
#[derive(Debug, Default)]
pub(crate) struct Document {
    /// Targets of links and pictures, as written.
    pub(crate) links: Vec<String>,
    /// Names that a link may carry behind `#`.
    pub(crate) anchors: Vec<String>,
    /// Command lines of shell blocks, one logical line each.
    pub(crate) commands: Vec<String>,
    /// Code within sentences.
    pub(crate) spans: Vec<String>,
}

/// Takes a Markdown text apart.
pub(crate) fn parse(text: &str) -> Document {
    let mut document = Document::default();
    let mut seen = BTreeMap::new();
    let mut heading: Option<String> = None;
    let mut block: Option<(String, String)> = None;
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let title = heading.take().unwrap_or_default();
                document.anchors.push(anchor(&title, &mut seen));
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                document.links.push(dest_url.into_string());
            }
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                block = Some((language.into_string(), String::new()));
            }
            Event::End(TagEnd::CodeBlock) => {
                if let Some((language, code)) = block.take() {
                    document.commands.extend(commands(&language, &code));
                }
            }
            Event::Text(text) => {
                if let Some((_, code)) = &mut block {
                    code.push_str(&text);
                } else if let Some(title) = &mut heading {
                    title.push_str(&text);
                }
            }
            Event::Code(code) => {
                if let Some(title) = &mut heading {
                    title.push_str(&code);
                }
                document.spans.push(code.into_string());
            }
            _ => {}
        }
    }
    document
}

/// The anchor of a heading as GitHub and mdBook make it; a repeated one gets a number.
fn anchor(title: &str, seen: &mut BTreeMap<String, u32>) -> String {
    let kept = title
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    let slug: String = kept
        .flat_map(|c| if c == ' ' { '-' } else { c }.to_lowercase())
        .collect();
    let times = seen.entry(slug.clone()).or_default();
    *times += 1;
    match *times {
        1 => slug,
        n => format!("{slug}-{}", n - 1),
    }
}

/// The command lines of a block: all of a `sh` block, those behind `$ ` of a `console` block.
fn commands(language: &str, code: &str) -> Vec<String> {
    let prompt = match language {
        "sh" | "bash" => "",
        "console" => "$ ",
        _ => return vec![],
    };
    let joined = code.replace("\\\n", " ");
    joined
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix(prompt))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_taken_apart() {
        let text = "# One `x` two\n\nSee [a](b.md#c), `cargo xtask tidy`.\n\n# One `x` two\n\n\
            ```console\n$ cargo xtask bench \\\n    index\n12 passed\n```\n\n```sh\n# a comment\nls\n```\n";
        let document = parse(text);
        assert_eq!(document.anchors, ["one-x-two", "one-x-two-1"]);
        assert_eq!(document.links, ["b.md#c"]);
        assert_eq!(document.spans, ["x", "cargo xtask tidy", "x"]);
        assert_eq!(document.commands, ["cargo xtask bench      index", "ls"]);
    }
}
