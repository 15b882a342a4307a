"""A paragraph of a letter in Bokmål, Nynorsk and Danish."""

from __future__ import annotations

NOB = (
    "Kommunen har mottatt søknaden din om barnehageplass, og vi vil behandle den innen tre uker. "
    "Hvis du ikke hører fra oss, kan du ringe sentralbordet. Dette vedtaket kan påklages, og "
    "klagen må sendes til oss før fristen går ut."
)
NNO = (
    "Kommunen har fått søknaden din om barnehageplass, og vi vil handsame han innan tre veker. "
    "Dersom du ikkje høyrer frå oss, kan du ringje sentralbordet. Dette vedtaket kan du klage på, "
    "og klaga må sendast til oss før fristen går ut."
)
DAN = (
    "Kommunen har modtaget din ansøgning om en plads i børnehaven, og vi behandler den inden for "
    "tre uger. Hvis du ikke hører fra os, kan du ringe til omstillingen. Afgørelsen kan påklages, "
    "og klagen skal sendes til os, inden fristen udløber."
)
