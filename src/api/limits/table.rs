//! Expansion of the table of limits.

/// Struct of one pool: each limit is an optional field.
macro_rules! pool {
    ($(#[$about:meta])* $Pool:ident { $($fields:tt)* }) => {
        $(#[$about])*
        #[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
        pub struct $Pool {
            $($fields)*
        }
    };
    ($(#[$about:meta])* $Pool:ident { $($fields:tt)* } [$($doc:tt)*] $field:ident $name:tt IdleTime; $($rest:tt)*) => {
        pool! { $(#[$about])* $Pool { $($fields)* } [$($doc)*] $field $name Time; $($rest)* }
    };
    ($(#[$about:meta])* $Pool:ident { $($fields:tt)* } [$($doc:tt)*] $field:ident $name:tt Requests; $($rest:tt)*) => {
        pool! { $(#[$about])* $Pool { $($fields)* } [$($doc)*] $field $name Connections; $($rest)* }
    };
    ($(#[$about:meta])* $Pool:ident { $($fields:tt)* } [$($doc:tt)*] $field:ident $name:tt Time; $($rest:tt)*) => {
        pool! { $(#[$about])* $Pool {
            $($fields)*
            $($doc)*
            #[serde(rename = $name, default, skip_serializing_if = "Option::is_none")]
            pub $field: Option<GoDuration>,
        } $($rest)* }
    };
    ($(#[$about:meta])* $Pool:ident { $($fields:tt)* } [$($doc:tt)*] $field:ident $name:tt Connections; $($rest:tt)*) => {
        pool! { $(#[$about])* $Pool {
            $($fields)*
            $($doc)*
            #[serde(rename = $name, default, skip_serializing_if = "Option::is_none")]
            #[schemars(range(min = 0, max = 1_000_000), extend("format" = "int32"))]
            pub $field: Option<u32>,
        } $($rest)* }
    };
}

/// Optional name.
macro_rules! optional {
    () => {
        None
    };
    ($name:tt) => {
        Some($name)
    };
}

macro_rules! limits {
    ($(
        $(#[$about:meta])*
        $Pool:ident $pool:ident $prefix:tt $side:ident {
            $(
                $(#[$doc:meta])*
                $limit:ident $field:ident $name:tt $measure:ident $($go:literal)?;
            )*
        }
    )*) => {
        $(pool! { $(#[$about])* $Pool {} $([$(#[$doc])*] $field $name $measure;)* })*

        /// Limit, named by its path in [`Limits`]. The documentation has the limits in this order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Limit {
            $($($(#[$doc])* $limit,)*)*
        }

        /// Table of limits, with one row for each limit in the order of [`Limit`].
        pub const TABLE: &[Row] = &[$($(Row {
            path: concat!($prefix, ".", $name),
            pool: $prefix,
            side: Side::$side,
            measure: Measure::$measure,
            go: optional!($($go)?),
        },)*)*];

        /// Limits that Go has, as `pool.Field`: the name of the pool in YAML and the name of the field in Go.
        pub const GO: &[(Limit, &str)] = &[$($($((Limit::$limit, concat!($prefix, ".", $go)),)?)*)*];

        /// Limits that Go has, as `Pool_Field`, which is a valid name of an environment variable.
        pub const GO_ENV: &[(Limit, &str)] = &[$($($((Limit::$limit, concat!(stringify!($Pool), "_", $go)),)?)*)*];

        impl Limit {
            /// All limits.
            pub const ALL: [Self; TABLE.len()] = [$($(Self::$limit,)*)*];
        }

        impl Limits {
            /// Returns the limits that are set, as a flat map. A text that is not a duration is left out; the API server refuses
            /// it.
            #[must_use]
            pub fn settings(&self) -> LimitValues {
                let Self { $($pool,)* } = self;
                let mut all = LimitValues::new();
                $(if let Some($Pool { $($field,)* }) = $pool {
                    $(all.extend($field.as_ref().and_then(Field::value).map(|value| (Limit::$limit, value)));)*
                })*
                all
            }
        }

        impl From<&LimitValues> for Limits {
            fn from(settings: &LimitValues) -> Self {
                $(let $pool = $Pool { $($field: settings.get(&Limit::$limit).and_then(|value| Field::of(*value)),)* };)*
                Self { $($pool: ($pool != $Pool::default()).then_some($pool),)* }
            }
        }
    };
}
