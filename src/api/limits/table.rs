//! What the table of limits expands to.

/// The struct of one pool: each of its limits is a field that may be absent.
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

/// A name that may be absent.
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
                $knob:ident $field:ident $name:tt $measure:ident $($go:literal)?;
            )*
        }
    )*) => {
        $(pool! { $(#[$about])* $Pool {} $([$(#[$doc])*] $field $name $measure;)* })*

        /// One limit, by its place in [`Limits`]. The order is the order of the documentation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Knob {
            $($($(#[$doc])* $knob,)*)*
        }

        /// The table: a row for each limit, in the order of [`Knob`].
        pub const TABLE: &[Row] = &[$($(Row {
            path: concat!($prefix, ".", $name),
            pool: $prefix,
            side: Side::$side,
            measure: Measure::$measure,
            go: optional!($($go)?),
        },)*)*];

        /// The limits that Go has, as `pool.Field`: the pool by its name in YAML, the field by Go's own name.
        pub const GO: &[(Knob, &str)] = &[$($($((Knob::$knob, concat!($prefix, ".", $go)),)?)*)*];

        /// The same as `Pool_Field`: a name that an environment variable may have.
        pub const GO_ENV: &[(Knob, &str)] = &[$($($((Knob::$knob, concat!(stringify!($Pool), "_", $go)),)?)*)*];

        impl Knob {
            /// Every knob there is.
            pub const ALL: [Self; TABLE.len()] = [$($(Self::$knob,)*)*];
        }

        impl Limits {
            /// The fields that are set, flat. A text that is no duration is left out: the API server refuses it.
            #[must_use]
            pub fn settings(&self) -> Settings {
                let Self { $($pool,)* } = self;
                let mut all = Settings::new();
                $(if let Some($Pool { $($field,)* }) = $pool {
                    $(all.extend($field.as_ref().and_then(Field::value).map(|value| (Knob::$knob, value)));)*
                })*
                all
            }
        }

        impl From<&Settings> for Limits {
            fn from(settings: &Settings) -> Self {
                $(let $pool = $Pool { $($field: settings.get(&Knob::$knob).and_then(|value| Field::of(*value)),)* };)*
                Self { $($pool: ($pool != $Pool::default()).then_some($pool),)* }
            }
        }
    };
}
