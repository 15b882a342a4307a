"""Names of languages, and the codes that sources and py3langid use for them.

Each line of the table has a language's ISO 639-3 code, its English name, and its other codes. The
other codes are those of ISO 639-1 and ISO 639-2/B, and codes of macrolanguages and variants that
sources or py3langid use.
"""

from __future__ import annotations

UNDETERMINED = "und"  # ISO 639-3's code for an unknown language
MIXED = "nor"  # text with both written standards of Norwegian

_TABLE = """
nob Bokmål: nb no
nno Nynorsk: nn
nor Norwegian (both standards):
dan Danish: da
swe Swedish: sv
eng English: en
sme North Sámi: se
smj Lule Sámi:
sma South Sámi:
smn Inari Sámi:
sms Skolt Sámi:
fkv Kven:
afr Afrikaans: af
amh Amharic: am
ara Arabic: ar arb ary arz
arg Aragonese: an
asm Assamese: as
aze Azerbaijani: az
ace Acehnese:
bak Bashkir: ba
bcl Central Bikol:
bel Belarusian: be
ben Bengali: bn
bos Bosnian: bs
bre Breton: br
bul Bulgarian: bg
cat Catalan: ca
ces Czech: cs cze
ckb Central Kurdish: sdh
crh Crimean Tatar:
cym Welsh: cy wel
deu German: de ger
dzo Dzongkha: dz
ell Greek: el gre grc
epo Esperanto: eo
est Estonian: et
eus Basque: eu baq
ext Extremaduran:
fao Faroese: fo
fas Persian: fa per pes prs
fin Finnish: fi
fra French: fr fre
fry West Frisian: fy
fuv Fula:
gcf Antillean Creole:
gcr Guianan Creole:
gla Scottish Gaelic: gd
gle Irish: ga
glg Galician: gl
gom Konkani:
grn Guaraní: gn gug
guj Gujarati: gu
guw Gun:
hat Haitian Creole: ht
hau Hausa: ha
heb Hebrew: he iw hbo
hin Hindi: hi
hrv Croatian: hr
hbs Bosnian, Croatian or Serbian: sh
hun Hungarian: hu
hye Armenian: hy arm
ibo Igbo: ig
ind Indonesian: id
isl Icelandic: is ice
ita Italian: it
jav Javanese: jv
jpn Japanese: ja
kab Kabyle:
kan Kannada: kn
kat Georgian: ka geo
kaz Kazakh: kk
khm Khmer: km
kik Kikuyu: ki
kin Kinyarwanda: rw
kir Kyrgyz: ky
kmr Northern Kurdish: ku kur
kor Korean: ko
lao Lao: lo
lat Latin: la
lav Latvian: lv lvs
lij Ligurian:
lin Lingala: ln
lit Lithuanian: lt
ltg Latgalian:
ltz Luxembourgish: lb
lug Ganda: lg
mal Malayalam: ml
mar Marathi: mr
mkd Macedonian: mk mac
mlg Malagasy: mg
mlt Maltese: mt
mon Mongolian: mn
msa Malay: ms may
mya Burmese: my bur
nds Low German:
nep Nepali: ne
nld Dutch: nl dut
nso Northern Sotho:
oci Occitan: oc
ori Odia: or
orm Oromo: om
pan Punjabi: pa
pcm Nigerian Pidgin:
pol Polish: pl
por Portuguese: pt
pus Pashto: ps
que Quechua: qu
rom Romani:
ron Romanian: ro rum
rus Russian: ru
san Sanskrit: sa
sin Sinhala: si
slk Slovak: sk slo
slv Slovenian: sl
sna Shona: sn
som Somali: so
sot Southern Sotho: st
spa Spanish: es
sqi Albanian: sq alb
srp Serbian: sr
swa Swahili: sw
tam Tamil: ta
tat Tatar: tt
tel Telugu: te
tgk Tajik: tg
tgl Tagalog: tl fil
tha Thai: th
tir Tigrinya: ti
tuk Turkmen: tk
tur Turkish: tr
uig Uyghur: ug
ukr Ukrainian: uk
urd Urdu: ur
uzb Uzbek: uz uzs
vec Venetian:
vie Vietnamese: vi
vol Volapük: vo
wln Walloon: wa
xho Xhosa: xh
yid Yiddish: yi
yor Yoruba: yo
zho Chinese: zh chi wuu yue
zul Zulu: zu
"""

NAMES: dict[str, str] = {}  # ISO 639-3 -> English name
ISO_639_3: dict[str, str] = {}  # any of a language's codes -> ISO 639-3
for _line in _TABLE.split("\n"):
    _head, _, _codes = _line.partition(":")
    _iso, _, _name = _head.partition(" ")
    if _iso:
        NAMES[_iso] = _name
        ISO_639_3 |= dict.fromkeys([_iso, *_codes.split()], _iso)
NAMES[UNDETERMINED] = "another language"


def language_name(code: str) -> str:
    """Return a language's English name, or its code if it is not in the table."""
    return NAMES.get(code, code)
