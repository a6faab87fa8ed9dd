//! Matches saved originals to reverse proxies after another client has changed a Caddy's routes. Pure.
//!
//! A reverse proxy is identified by the matchers of its routes and its upstreams, or by its `@id`. If these changed, an
//! original is assigned only if exactly one proxy can be meant. If several proxies with different originals can be
//! meant, none of them gets one, and an Event names them. Restoring a wrong value is worse than leaving the present
//! one.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    api::{Limit, Value},
    decide::{ConfigPath, Moved, Sites, UnitState},
};

/// The identity in a reverse proxy's place, in the earlier or the present notation.
struct Name<'a> {
    /// Server and upstreams.
    family: &'a str,
    /// The family with the matchers of the routes; `None` if an earlier operator version wrote the place.
    key: Option<&'a str>,
}

impl<'a> Name<'a> {
    /// Returns `None` for a server, and for a proxy with an `@id`.
    fn of(place: &'a str) -> Option<Self> {
        if !place.contains('/') || place.contains("/@") {
            return None;
        }
        let single = place.rsplit_once('#').map_or(place, |(single, _)| single);
        let hash = single.strip_suffix(']').and_then(|rest| rest.rsplit_once('['));
        let hash = hash.filter(|(_, hash)| hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
        Some(match hash {
            Some((family, _)) => Self { family, key: Some(single) },
            None => Self { family: single, key: None },
        })
    }
}

/// The known originals, by place.
type Held<'a> = BTreeMap<&'a str, BTreeMap<Limit, &'a Option<serde_json::Value>>>;

/// Assigns the saved originals to the present places; `None` if no place was renamed or became ambiguous. `ours` are
/// the values that the operator may have written.
#[must_use]
pub fn moved(saved: &Sites, state: &UnitState, ours: &BTreeSet<(Limit, Value)>) -> Option<Moved> {
    if saved.keys().all(|site| state.sites.contains_key(site)) {
        return None;
    }
    let mut held = Held::new();
    for (site, raw) in saved {
        held.entry(&site.place).or_default().insert(site.limit, raw);
    }
    let now: BTreeSet<&str> = state.sites.keys().map(|site| &*site.place).collect();
    let mut missing: BTreeMap<&str, Vec<(&str, Name<'_>)>> = BTreeMap::new();
    for place in held.keys().filter(|place| !now.contains(*place)) {
        if let Some(name) = Name::of(place) {
            missing.entry(name.family).or_default().push((place, name));
        }
    }
    let mut moves = Moves { held: &held, given: BTreeMap::new(), lost: BTreeSet::new() };
    for (family, missing) in missing {
        let present: Vec<_> =
            now.iter().filter_map(|place| Some((*place, Name::of(place)?))).filter(|(_, name)| name.family == family).collect();
        moves.family(state, ours, &missing, &present);
    }
    moves.ended(saved)
}

struct Moves<'a> {
    held: &'a Held<'a>,
    /// By the earlier place: the present places of its originals.
    given: BTreeMap<&'a str, Vec<String>>,
    /// Earlier places with an ambiguous proxy.
    lost: BTreeSet<&'a str>,
}

impl<'a> Moves<'a> {
    /// Matches reverse proxies of one server with the same upstreams.
    fn family(
        &mut self,
        state: &UnitState,
        ours: &BTreeSet<(Limit, Value)>,
        missing: &[(&'a str, Name<'a>)],
        present: &[(&str, Name<'_>)],
    ) {
        let mut rest: BTreeMap<Option<&str>, Vec<&'a str>> = BTreeMap::new();
        for (place, name) in missing {
            let same: Vec<_> = present.iter().filter(|(_, now)| name.key.is_some() && now.key == name.key).collect();
            if same.is_empty() {
                rest.entry(name.key).or_default().push(place);
                continue;
            }
            // The number of indistinguishable proxies has changed.
            let group: Vec<_> = missing.iter().filter(|(_, other)| other.key == name.key).map(|(place, _)| *place).collect();
            let all = place.rsplit_once("of").and_then(|(_, all)| all.parse().ok()).unwrap_or(1);
            if group.len() == all && self.alike(&group) {
                self.given.insert(place, same.iter().map(|(now, _)| (*now).to_owned()).collect());
            } else {
                self.lost.insert(place);
            }
        }
        // The notation of earlier operator versions counts proxies with the same upstreams.
        if let Some(former) = rest.get(&None)
            && let Some(names) = former.iter().map(|place| former_name(place, state, present)).collect::<Option<Vec<_>>>()
        {
            self.given.extend(former.iter().copied().zip(names.into_iter().map(|name| vec![name])));
            rest.remove(&None);
        }
        let rest: Vec<_> = rest.into_values().flatten().collect();
        let holds_ours = |place: &str, limits: &BTreeMap<Limit, &Option<serde_json::Value>>| {
            limits.keys().all(|limit| {
                let stored = state.sites.get(&ConfigPath { limit: *limit, place: place.to_owned() });
                stored.is_none_or(|stored| stored.value.is_some_and(|value| ours.contains(&(*limit, value))))
            })
        };
        // After a change of its routes, a proxy still has the written values, and no originals exist under its new
        // name.
        let taken: BTreeSet<_> = self.given.values().flatten().cloned().collect();
        let open =
            present.iter().map(|(place, _)| *place).filter(|place| !self.held.contains_key(place) && !taken.contains(*place));
        let open: Vec<_> = open.filter(|place| rest.iter().any(|old| holds_ours(place, &self.held[old]))).collect();
        if open.is_empty() {
            // The proxies are gone together with their originals.
        } else if self.alike(&rest) || (rest.len() == 1 && open.len() == 1) {
            self.given.extend(rest.iter().map(|old| (*old, open.iter().map(|place| (*place).to_owned()).collect())));
        } else {
            self.lost.extend(rest);
        }
    }

    /// Whether all of them had the same values.
    fn alike(&self, places: &[&str]) -> bool {
        places.windows(2).all(|two| self.held[two[0]] == self.held[two[1]])
    }

    fn ended(self, saved: &Sites) -> Option<Moved> {
        if self.given.is_empty() && self.lost.is_empty() {
            return None;
        }
        let mut moved = Moved::default();
        for (site, raw) in saved {
            if self.lost.contains(&*site.place) {
                moved.lost.insert(site.clone());
            } else if let Some(places) = self.given.get(&*site.place) {
                let sites = places.iter().map(|place| ConfigPath { limit: site.limit, place: place.clone() });
                moved.sites.extend(sites.map(|site| (site, raw.clone())));
            } else {
                moved.sites.insert(site.clone(), raw.clone());
            }
        }
        Some(moved)
    }
}

/// The present place of an earlier one, if it is still the same proxy.
fn former_name(place: &str, state: &UnitState, present: &[(&str, Name<'_>)]) -> Option<String> {
    state.former.get(place).cloned().or_else(|| match present {
        [(now, name)] if name.family == place => Some((*now).to_owned()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value as Json, json};

    use super::*;
    use crate::targets::caddy::config;

    const LIMIT: Limit = Limit::BackendIdleConnTimeout;

    fn route(path: &str, idle: &str) -> Json {
        let transport = json!({"protocol": "http", "keep_alive": {"idle_timeout": idle}});
        let handle = json!([{"handler": "reverse_proxy", "upstreams": [{"dial": "127.0.0.1:9"}], "transport": transport}]);
        if path.is_empty() { json!({"handle": handle}) } else { json!({"match": [{"path": [path]}], "handle": handle}) }
    }

    fn state(routes: &[Json]) -> UnitState {
        let seen = config::see(&json!({"web": {"routes": routes}}).to_string()).expect("few enough");
        UnitState { sites: seen.sites, former: seen.former, ..UnitState::default() }
    }

    /// The idle timeouts by place.
    fn saved(state: &UnitState) -> Sites {
        let idle = state.sites.iter().filter(|(site, _)| site.limit == LIMIT);
        idle.map(|(site, stored)| (site.clone(), stored.raw.clone())).collect()
    }

    fn ours() -> BTreeSet<(Limit, Value)> {
        [(LIMIT, Value::Duration(Duration::from_secs(20)))].into()
    }

    /// The values to restore by place, and the number of lost originals.
    fn after(before: &[Json], now: &[Json]) -> (Vec<Option<String>>, usize) {
        let (held, now) = (saved(&state(before)), state(now));
        let moved = moved(&held, &now, &ours()).unwrap_or(Moved { sites: held, lost: BTreeSet::new() });
        let text = |raw: &Json| raw.as_str().map(str::to_owned);
        (
            now.sites
                .iter()
                .filter(|(site, _)| site.limit == LIMIT)
                .map(|(site, _)| text(moved.sites.get(site)?.as_ref()?))
                .collect(),
            moved.lost.len(),
        )
    }

    fn some(values: &[&str]) -> Vec<Option<String>> {
        values.iter().map(|value| Some((*value).to_owned())).collect()
    }

    #[test]
    fn a_proxy_keeps_its_own_when_a_route_with_the_same_upstream_is_deleted() {
        let before = [route("/a", "10s"), route("/b", "99s")];
        assert_eq!(after(&before, &[route("/b", "20s")]), (some(&["99s"]), 0));
        assert_eq!(after(&before, &[route("/a", "20s")]), (some(&["10s"]), 0));
        // A new route before the others changes nothing.
        let now = [route("/new", "1s"), route("/b", "20s"), route("/a", "20s")];
        let (mut values, lost) = after(&before, &now);
        values.sort();
        assert_eq!((values, lost), ([vec![None], some(&["10s", "99s"])].concat(), 0));
    }

    #[test]
    fn a_proxy_whose_matcher_is_edited_is_still_the_same() {
        let before = [route("/a", "10s"), route("/b", "99s")];
        let mut values = after(&before, &[route("/a2", "20s"), route("/b", "20s")]).0;
        values.sort();
        assert_eq!(values, some(&["10s", "99s"]));
        // A new proxy with another value is not the same one.
        let mut values = after(&before, &[route("/a2", "7s"), route("/b", "20s")]).0;
        values.sort();
        assert_eq!(values, [vec![None], some(&["99s"])].concat());
    }

    #[test]
    fn of_several_that_cannot_be_told_apart_none_gets_what_may_be_anothers() {
        let before = [route("/a", "10s"), route("/b", "99s")];
        assert_eq!(after(&before, &[route("/c", "20s"), route("/d", "20s")]), (vec![None, None], 2));
        assert_eq!(after(&before, &[route("/c", "20s")]), (vec![None], 2));
        let alike = [route("/a", "10s"), route("/b", "10s")];
        assert_eq!(after(&alike, &[route("/c", "20s"), route("/d", "20s")]), (some(&["10s", "10s"]), 0));
    }

    #[test]
    fn duplicates_get_theirs_back_as_long_as_their_number_stays_or_they_held_the_same() {
        let before = [route("", "10s"), route("", "99s")];
        assert_eq!(after(&before, &[route("", "20s"), route("", "20s")]), (some(&["10s", "99s"]), 0));
        assert_eq!(after(&before, &[route("", "20s")]), (vec![None], 2));
        assert_eq!(after(&before, &[route("", "20s"), route("", "20s"), route("", "20s")]), (vec![None; 3], 2));
        let alike = [route("", "10s"), route("", "10s")];
        assert_eq!(after(&alike, &[route("", "20s")]), (some(&["10s"]), 0));
        assert_eq!(after(&[route("", "10s")], &[route("", "20s"), route("", "20s")]), (some(&["10s", "10s"]), 0));
        // One original was not saved, because it equaled the declared value. It may belong to either proxy.
        let mut partly = saved(&state(&before));
        partly.pop_first();
        let moved = moved(&partly, &state(&[route("", "20s")]), &ours()).expect("a change");
        assert_eq!((moved.sites.len(), moved.lost.len()), (0, 1));
    }

    #[test]
    fn proxies_that_are_gone_take_theirs_with_them() {
        let before = [route("/a", "10s"), route("/b", "99s")];
        let other = json!({"handle": [{"handler": "static_response"}]});
        assert_eq!(after(&before, &[other]), (vec![], 0));
    }

    #[test]
    fn places_that_a_former_version_wrote_are_known_again() {
        let now = state(&[route("/b", "20s"), route("/a", "20s")]);
        let former = |place: &str, idle: &str| (ConfigPath { limit: LIMIT, place: place.into() }, Some(json!(idle)));
        let both: Sites = [former("web/127.0.0.1:9", "10s"), former("web/127.0.0.1:9#1", "99s")].into();
        let given = moved(&both, &now, &ours()).expect("a change");
        let of = |n: &str| given.sites[&ConfigPath { limit: LIMIT, place: now.former[n].clone() }].clone();
        assert_eq!((of("web/127.0.0.1:9"), of("web/127.0.0.1:9#1")), (Some(json!("10s")), Some(json!("99s"))));
        let one: Sites = [former("web/127.0.0.1:9", "10s")].into();
        let single = state(&[route("/b", "20s")]);
        let given = moved(&one, &single, &ours()).expect("a change");
        assert_eq!(given.sites.values().collect::<Vec<_>>(), [&Some(json!("10s"))]);
        assert!(given.sites.keys().all(|site| single.sites.contains_key(site)));
        // Of two proxies, one is left.
        assert_eq!(moved(&both, &single, &ours()).map(|moved| moved.lost.len()), Some(2));
    }

    #[test]
    fn servers_and_proxies_with_an_id_keep_their_names() {
        let mut named = route("/a", "10s");
        named["handle"][0]["@id"] = "api".into();
        let mut edited = route("/z", "20s");
        edited["handle"][0]["@id"] = "api".into();
        assert_eq!(after(&[named], &[edited]), (some(&["10s"]), 0));
    }
}
