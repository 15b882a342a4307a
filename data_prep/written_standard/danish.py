"""Words that are Danish and not Norwegian; a text needs one of them to be identified as Danish.

Most words of a Danish sentence are Bokmål too. The sum of the words' weights is therefore sometimes
in favour of Danish for a text that is plain Bokmål. This module lists common Danish words, and
patterns of spellings that only Danish has (`-hed`, `-skab`, `æg`, `øj`, `ud-`, `ind-`, `af-`). The
Norwegian texts of parliament and NAV have 25,000 different words. Apart from names, none of these
is in the list or matches a pattern.
"""

from __future__ import annotations

import re
from functools import lru_cache

_COMMON = """
    af aftale aftalen aftaler aldrig alligevel altid arbejde arbejdede arbejder arbejdet
    arbejdsgiver bage bagefter bedste bemærke bemærkninger benævnes benævnt betyde betyder betød
    bjerg blev bleven blevet blive bliver bog bogen bøger børn børnene cykel cykler dig dreng
    drenge drengen drengene ejendom ejendommen ejer ejere endnu fandt fejl fejlen fik
    flyvemaskine foretage foretaget forskel forskelle forskellig forskellige forår fuld fulde
    fuldt fået fælles gade gaden gader gik glæde glæder græde græs gået gælde gældende gælder
    gør gøre havde hej hendes hjælp hjælpe hjælpen hjælper hvad hvid hvide hvorefter hvornår
    hvorved håbe håber igen igennem imellem indbyggere indeholder indenfor indgå især jeres kage
    kager kende kender kendt kendte kigge kigger kold koldt kræve kræver krævet køkken lavede
    leje lige ligesom læse læser læst læste maden magt magten mand manden marts medarbejder
    medarbejdere mellem mig modtage modtager modtaget måde måden måder måske mælk mærke mærker
    nej nogen noget nogle næste næsten nævne nævner nævnt nøgle nøgler opstå opstår pege peger
    pige pigen piger pigerne pligter procent påbegynde regering regeringen rejse rejsen rejsende
    rejser rejste rigtig rigtige ryge råbe ræv ræve sagde samfund samfundet selvom sidst sidste
    sige siger skib skov skoven skrige skyde skøn smage smuk smukke sprog sproget spurgte stået
    syg sygdom syge sygehus sygehuset sådanne sået sælge sætte sætter søen tager taget tilbage
    tilfælde tilfældet tilladelse tillader tilladt tiltræde troede træer tvivl tvivler tåge
    uddannelse uddannelsen uddannelser udelukkende uden udenfor udenlandske udover uge ugen
    ugens uger vej veje vejen vejr venlig venlige ventede vidste vigtig vigtige vigtigste vores
    vågne vælge vælger vælges værdi ydelse ydelser ældre ældste
"""
_WORDS = frozenset(_COMMON.split())
_SPELLINGS = re.compile(
    r"æ[bfgkmn]|øj|\w\w(?<!br)(?<!e)igt$|^gen(?:op|ind|valg|tag|vur|brug|sid|lyd|skab|nem)"
    r"|^af(?=[bdhjkmnpsv]|g[iøår]|ly|lø)\w{3}"
    r"|^ind(?=[fghklmstvå])\w{3}|^ud(?=[bfghjklstv])\w{2}|^op(?=[bdfghjklmv])\w{2}"
    r"|\wskab(?:et|er|erne|s|elig|elige|eligt)?$|brug(?!d|at|ge)|søg|spørg|køb|løb|dyb(?!d)|kvind(?!u)"
    r"|\w{2}(?<![cs])hed(?:er|en|erne|ens|s)?$"
)


@lru_cache(maxsize=100_000)
def is_danish_only(word: str) -> bool:
    """Return whether a word is in the list of Danish words, or has a spelling that only Danish has.

    Args:
        word: a word in lower case.
    """
    return word in _WORDS or _SPELLINGS.search(word) is not None
