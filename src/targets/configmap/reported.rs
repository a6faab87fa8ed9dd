//! The settings that a pod reports to use. Pure.

use std::net::{IpAddr, SocketAddr};

use ring::digest;

use crate::{api::config_map::Page, decide::Serves};

/// The gauge with which a process reports its settings.
const METRIC: &[u8] = b"idleconn_config_info{";
/// Number of characters of a hash.
const LENGTH: usize = 16;

/// The hash of files: the first 16 hexadecimal digits of the SHA-256 of their bytes, in the order of their keys.
#[must_use]
pub fn hash<'a>(files: impl Iterator<Item = &'a String>) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    files.for_each(|text| context.update(text.as_bytes()));
    let sum = context.finish();
    let digits = sum.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]).take(LENGTH);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

/// The address of a page of a pod; empty if the pod has no address yet.
#[must_use]
pub fn address(page: &Page, host: &str) -> String {
    let address = host.parse().map(|ip: IpAddr| format!("{}://{}", page.scheme.name(), SocketAddr::new(ip, page.port)));
    address.unwrap_or_default()
}

/// The address at which a pod serves. The user sets the port.
#[must_use]
pub fn serves(host: &str) -> Option<Serves> {
    let host = match host.parse::<IpAddr>().ok()? {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    Some(Serves { host, port: None, tls: false })
}

/// The hash, if the page contains nothing else.
#[must_use]
pub fn bare(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?.trim();
    (text.len() == LENGTH && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_owned())
}

/// The hashes in a metrics page: a process may read several files.
#[must_use]
pub fn in_metrics(page: &[u8]) -> Vec<String> {
    let lines = page.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(METRIC));
    lines
        .filter_map(|line| std::str::from_utf8(line).ok())
        .filter_map(|line| {
            let (labels, value) = line.rsplit_once('}')?;
            // With 0, a process reports that it no longer uses the file.
            let used = value.split_ascii_whitespace().next()?.parse::<f64>().is_ok_and(|value| value > 0.0);
            let hash = labels.split(',').find_map(|label| label.trim().strip_prefix("hash=\"")?.strip_suffix('"'))?;
            used.then(|| hash.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::refs::Scheme;

    #[test]
    fn a_hash_is_the_beginning_of_sha256() {
        // `printf 'a: 1\n' | sha256sum`
        assert_eq!(hash([&"a: 1\n".to_owned()].into_iter()), "37b128c59f1f5097");
        assert_eq!(hash(["a: ".to_owned(), "1\n".to_owned()].iter()), "37b128c59f1f5097");
    }

    #[test]
    fn pages_are_read_for_what_they_say() {
        let page = b"# HELP idleconn_config_info x\nidleconn_config_info{file=\"http.yaml\",hash=\"00\"} 1\nidleconn_config_info{hash=\"11\"} 0\n\
            idleconn_config_infos{hash=\"22\"} 1\nidleconn_config_info{hash=\"33\"} 1.0 1700000000\nidleconn_config_info{file=\"x\"} 1\n\
            idleconn_config_info{hash=\"44\n";
        assert_eq!(in_metrics(page), ["00", "33"]);
        assert_eq!(bare(b" 37b128c59f1f5097\n").as_deref(), Some("37b128c59f1f5097"));
        for bad in [&b""[..], b"37b128c59f1f509", b"<html>xxxxxxxxxx", b"\xff"] {
            assert_eq!(bare(bad), None);
        }
    }

    #[test]
    fn a_pod_without_an_address_is_not_asked() {
        let page = Page { port: 8080, path: "/metrics".into(), scheme: Scheme::Http };
        assert_eq!(address(&page, "10.0.0.1"), "http://10.0.0.1:8080");
        assert_eq!(address(&page, "fd00::1"), "http://[fd00::1]:8080");
        assert_eq!(address(&page, ""), "");
    }
}
