"""Hard cases of language detection.

The cases are languages unlike Norwegian, pages in several languages, names, and Bokmål that
resembles Danish.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.language import describe_other_languages, read_declarations, read_ud_sentences
from data_prep.document import Turn
from data_prep.languages import ISO_639_3, NAMES
from data_prep.other_languages import _all_languages, find_other_languages
from data_prep.stage_settings import LanguageConfig
from data_prep.stages import language
from data_prep.stages.language import Language
from data_prep.written_standard.danish import is_danish_only
from data_prep.written_standard.names import remove_codes, remove_names
from tests.data_prep.documents import make_config, make_document, run_shard_stage
from tests.data_prep.paragraphs import DAN, NNO, NOB

PARAGRAPHS = {
    "pol": (
        "Gmina otrzymała Państwa wniosek o miejsce w przedszkolu i rozpatrzy go w ciągu trzech "
        "tygodni. Jeżeli nie otrzymają Państwo odpowiedzi, prosimy o telefon do centrali. Od tej "
        "decyzji można się odwołać przed upływem terminu."
    ),
    "ces": (
        "Obec obdržela vaši žádost o místo ve školce a vyřídí ji do tří týdnů. Pokud od nás "
        "nedostanete odpověď, zavolejte prosím na ústřednu. Proti tomuto rozhodnutí se můžete "
        "odvolat před uplynutím lhůty."
    ),
    "lit": (
        "Savivaldybė gavo jūsų prašymą dėl vietos vaikų darželyje ir išnagrinės jį per tris "
        "savaites. Jei negausite atsakymo, prašome skambinti bendruoju telefonu. Šį sprendimą "
        "galima apskųsti iki nustatyto termino."
    ),
    "lav": (
        "Pašvaldība ir saņēmusi jūsu iesniegumu par vietu bērnudārzā un izskatīs to trīs nedēļu "
        "laikā. Ja atbildi nesaņemat, lūdzu, zvaniet uz centrāli. Šo lēmumu var pārsūdzēt līdz "
        "noteiktajam termiņam."
    ),
    "deu": (
        "Die Gemeinde hat Ihren Antrag auf einen Kindergartenplatz erhalten und wird ihn innerhalb "
        "von drei Wochen bearbeiten. Wenn Sie nichts von uns hören, rufen Sie bitte die Zentrale "
        "an. Gegen den Bescheid können Sie Beschwerde einlegen."
    ),
    "nld": (
        "De gemeente heeft uw aanvraag voor een plaats in de kinderopvang ontvangen en zal deze "
        "binnen drie weken behandelen. Als u niets van ons hoort, kunt u de centrale bellen. Tegen "
        "dit besluit kunt u bezwaar maken."
    ),
    "fra": (
        "La commune a reçu votre demande de place à la crèche et la traitera dans un délai de "
        "trois semaines. Si vous n'avez pas de nos nouvelles, veuillez appeler le standard. Cette "
        "décision peut faire l'objet d'un recours."
    ),
    "spa": (
        "El ayuntamiento ha recibido su solicitud de plaza en la guardería y la tramitará en un "
        "plazo de tres semanas. Si no recibe noticias nuestras, puede llamar a la centralita. Esta "
        "decisión puede recurrirse antes de que venza el plazo."
    ),
    "fin": (
        "Kunta on vastaanottanut hakemuksesi päiväkotipaikasta ja käsittelee sen kolmen viikon "
        "kuluessa. Jos et kuule meistä, voit soittaa vaihteeseen. Päätökseen voi hakea muutosta "
        "ennen määräajan päättymistä."
    ),
    "est": (
        "Vald on saanud teie avalduse lasteaiakoha kohta ja vaatab selle läbi kolme nädala "
        "jooksul. Kui te meilt vastust ei saa, palun helistage keskjaama. Selle otsuse peale saab "
        "esitada kaebuse enne tähtaja möödumist."
    ),
    "isl": (
        "Sveitarfélagið hefur tekið við umsókn þinni um leikskólapláss og mun afgreiða hana innan "
        "þriggja vikna. Ef þú heyrir ekki frá okkur getur þú hringt í skiptiborðið. Hægt er að "
        "kæra þessa ákvörðun áður en fresturinn rennur út."
    ),
    "fao": (
        "Kommunan hevur móttikið umsókn tína um pláss í barnagarðinum og fer at viðgera hana innan "
        "tríggjar vikur. Um tú ikki hoyrir frá okkum, kanst tú ringja til okkara. Hesa avgerð "
        "kanst tú kæra, áðrenn freistin er úti."
    ),
    "tur": (
        "Belediye, anaokulu yeri başvurunuzu aldı ve üç hafta içinde değerlendirecek. Bizden haber "
        "alamazsanız santrali arayabilirsiniz. Bu karara süre dolmadan önce itiraz edilebilir."
    ),
    "som": (
        "Degmadu waxay heshay codsigaaga ku saabsan booska xannaanada carruurta, waxayna ka "
        "baaraandegi doontaa saddex toddobaad gudahood. Haddii aadan naga maqlin, waxaad wici "
        "kartaa xarunta. Go'aankan waa laga dacwoon karaa ka hor inta waqtigu dhammaan."
    ),
    "ukr": (
        "Громада отримала вашу заяву про місце в дитячому садку і розгляне її протягом трьох "
        "тижнів. Якщо ви не отримаєте відповіді, зателефонуйте на центральний номер. Це рішення "
        "можна оскаржити до закінчення терміну."
    ),
    "rus": (
        "Муниципалитет получил ваше заявление о месте в детском саду и рассмотрит его в течение "
        "трёх недель. Если вы не получите ответа, позвоните по общему номеру. Это решение можно "
        "обжаловать до истечения срока."
    ),
    "ara": (
        "استلمت البلدية طلبكم للحصول على مكان في روضة الأطفال وستعالجه خلال ثلاثة أسابيع. إذا لم "
        "تسمعوا منا فيمكنكم الاتصال بالهاتف. يمكن الاعتراض على هذا القرار قبل انتهاء المهلة."
    ),
    "fas": (
        "شهرداری درخواست شما برای جای مهدکودک را دریافت کرده است و ظرف سه هفته به آن رسیدگی "
        "می‌کند. اگر از ما خبری نشد، می‌توانید با مرکز تماس بگیرید. می‌توان پیش از پایان مهلت به "
        "این تصمیم اعتراض کرد."
    ),
    "ell": (
        "Ο δήμος έλαβε την αίτησή σας για θέση στον παιδικό σταθμό και θα την εξετάσει μέσα σε "
        "τρεις εβδομάδες. Μπορείτε να υποβάλετε ένσταση."
    ),
    "zho": (
        "市政府已收到您的幼儿园申请，并将在三周内处理。如果您没有收到我们的回复，请致电总机。您可以在期限之前对该决定提出申诉。"
    ),
    "tir": ("ምምሕዳር ከተማ ንጥርኑፍ ሕቶኹም ተቐቢሉ ኣሎ፣ ኣብ ውሽጢ ሰለስተ ሰሙን ድማ ክውስኖ እዩ። መልሲ እንተዘይረኺብኩም ክትድውሉ ትኽእሉ ኢኹም።"),
    "smj": (
        "Suohkan la oadtjum duv åhtsåmusáv mánájgárdesaje gáktuj ja gåhtju dav gålmån vahkon. Jus "
        "i gulá mijás, de máhtá ringgit mijá guovdátjij. Dáv mærrádusáv la máhttelis gujddit "
        "åvddål ájggemierre la nåhkåm."
    ),
    "sma": (
        "Tjïelte lea ohtsemem åådtjeme maanagïertesijjien bïjre jïh dam edtja gïetedidh golmen "
        "våhkoen sisnjelen. Jis ih maam govlh mijjeste, maahtah ringkedh. Daam sjæjsjalimmiem "
        "maahta laejhtedh aerebi mierie orreme."
    ),
    "fkv": (
        "Kunta oon saanu sinun hakemuksen lastentarhan paikasta ja käsittellee sen kolmen viikon "
        "siältä. Jos sie et kuule meiltä, sie saatat soittaat meile. Tästä päätöksestä saattaa "
        "valittaat ennen ko aika oon ohitte, ja met vastaama sulle kirjalisesti."
    ),
}
FORMER_DANISH = (
    "Kommunebestyrelsen har at paase, at de til Skolevæsenet bevilgede Midler anvendes efter deres "
    "Bestemmelse, og at Regnskabet aflægges inden Udgangen af Februar Maaned. Naar nogen afgaar "
    "ved Døden uden at efterlade sig Livsarvinger, tilfalder Arven hans Forældre."
)


@dataclass(frozen=True)
class Case:
    id: str
    text: str


PLAIN_BOKMAL = (
    Case(
        "verdicts",
        "Det kan godt være at den ordningen har virket, men hvem har målt det?",
    ),
    Case(
        "holding",
        "Der har jeg den holdning at saken bør komme tilbake til komiteen først.",
    ),
    Case(
        "present",
        "Derfor er jeg glad for at statsråden nå bekrefter at formålet med senteret skal ivaretas.",
    ),
    Case(
        "plenary",
        "Det er ikke tvil om at både ledelse og etat har en meget sentral rolle her, og det "
        "er mange gode sider ved det.",
    ),
)
NORWEGIAN_OF_NAMES = (
    Case(
        "municipalities",
        "Oversendelse av klage på vedtak om byggetillatelse - Kvam herad, Statsforvaltaren i "
        "Vestland\nInnkalling til møte med Møre og Romsdal fylkeskommune og Høgskulen i Volda\n"
        "Svar på søknad om tilskudd - Voss herad, Vestland fylkeskommune",
    ),
    Case(
        "sami places",
        "Søknad om dispensasjon for motorferdsel i Guovdageaidnu, Kárášjohka, Deatnu, Unjárga, "
        "Porsáŋgu og Gáivuotna - Sametinget / Sámediggi, Finnmarkkuopmodat",
    ),
    Case(
        "agencies",
        "Brev fra Norwegian Directorate of Health, European Food Safety Authority og World Health "
        "Organization - oversendelse av rapport fra Norwegian Institute of Public Health",
    ),
    Case(
        "a list of letters",
        "2024/123-4 Søknad om byggeløyve gnr 12 bnr 3\n"
        "2024/124-1 Kontrakt - Universitetet i Bergen\n"
        "2024/125-2 Referat frå møte i arbeidsgruppa\n2024/126-1 Anmodning om innsyn\n"
        "2024/127-8 Klage på avslag - Sogndal kommune",
    ),
    Case(
        "persons",
        "Kowalski, Piotr; Nguyễn Văn An; Müller, Hans-Jürgen; Mohammed Abdi Hassan; Oleksandr "
        "Shevchenko; Łukasz Wiśniewski",
    ),
    Case(
        "species",
        "Abramis brama, Aristichthys nobilis, Carassius auratus, Ctenopharyngodon idella, "
        "Cyprinus carpio, Silurus glanis",
    ),
    Case(
        "prizes",
        "blant annet to Oscar, tre Screen Actors Guild Awards, tre Golden Globes og tre "
        "British Academy Film Awards (BAFTA)",
    ),
    Case(
        "one sentence",
        "Kommunen har fått søknaden din, og vi vil handsame han innan tre veker.",
    ),
    Case(
        "law",
        "jf. forvaltningsloven § 17 første ledd, jf. offl. § 13 jf. fvl. § 13 nr. 1, jf. pbl. "
        "§ 20-1 bokstav a og b",
    ),
    Case(
        "software",
        "Access token utstedes av Maskinporten, og client_id settes som claim i JWT. Bruk "
        "scope, resource og audience.",
    ),
    Case(
        "codes",
        '"jti": "eb6ab01e-5834-4ba0-a2a1-457bfd0f0a49", "nonce": '
        '"S6tRrJ3tWsilRZl7hqySoORosHDDq4l6du3dxDhXoWc"',
    ),
    Case(
        "chemicals",
        "diklorfenoksyeddiksyre, natriumhydroksid, kaliumpermanganat, metylklorid, "
        "isopropanol, toluen, benzen, xylen",
    ),
)


@pytest.mark.parametrize("code", PARAGRAPHS)
def test_a_distant_language_is_dropped_by_name_whatever_is_claimed(code: str) -> None:
    first = PARAGRAPHS[code].split(". ")[0] + "."
    texts = [PARAGRAPHS[code], "\n\n".join([PARAGRAPHS[code]] * 2), first]
    documents = [
        make_document(text, f"{claim}{n}", language=claim)
        for n, text in enumerate(texts)
        for claim in ("", "nob", "nno")
    ]
    kept, report = run_shard_stage(Language(), documents, make_config())
    assert not kept
    assert set(report.drop_reasons()) <= {
        f"language_{code}",
        "language_und",
        "language_fin" if code == "fkv" else "",
    }
    assert report.drop_reasons()[f"language_{code}"] >= 6, "only a short sentence may lack a name"
    assert NAMES[code] in {drop.detail for drop in report.drops}


def test_an_unnamed_language_is_identified_by_its_script() -> None:
    for text, script in (
        ("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᎠᏂᏣᎳᎩ ᎤᏂᏬᏂᎯᏍᏗ ᎦᏚᏩᎩ ᎨᏒᎢ ᎠᎴ ᎠᏂᎦᏚᏩᎩ", "Cherokee"),
        ("ⵜⴰⵎⴰⵣⵉⵖⵜ ⴷ ⵜⵓⵜⵍⴰⵢⵜ ⵏ ⵉⵎⴰⵣⵉⵖⵏ ⴷⴳ ⵜⴰⵎⵓⵔⵜ ⵏⵙⵏ", "Tifinagh"),
    ):
        kept, report = run_shard_stage(Language(), [make_document(text * 2)], make_config())
        assert not kept
        assert [(drop.reason, drop.detail) for drop in report.drops] == [("language_und", f"{script} script")]


def test_a_language_in_no_table_is_dropped_as_undetermined() -> None:
    romani = (
        "Le manuša bijandžovena slobode thaj jekhutne ando demnipe thaj ando hakaja. Von si dine "
        "godjasa thaj konštiincasa thaj trebun te phiraven pen jekh karing avrende ando duxo le "
        "phralipnasko."
    )
    kept, report = run_shard_stage(
        Language(),
        [make_document(romani), make_document(romani, "b", language="nob")],
        make_config(),
    )
    assert not kept
    assert report.drop_reasons() == {"language_und": 2}
    assert all(drop.detail for drop in report.drops)


@pytest.mark.parametrize("code", ["pol", "deu", "fin", "ukr", "ara", "som", "fra"])
def test_the_norwegian_parts_of_a_mixed_page_are_kept(code: str) -> None:
    other = PARAGRAPHS[code]
    for mixture in (
        f"{NOB}\n\n{other}",
        f"{other}\n\n{NOB}",
        f"{NOB}\n{other}\n",
        f"{other}\n\n{other}\n\n{NOB}",
        f"{NNO}\n\n{other}\n\n{NNO}",
    ):
        kept, report = run_shard_stage(
            Language(),
            [make_document(mixture, claim or "none", language=claim) for claim in ("", "nob")],
            make_config(),
        )
        assert len(kept) == 2, mixture
        for document in kept:
            assert document.language == ("nno" if NNO in mixture else "nob")
            norwegian = [text for text in mixture.replace(other, "").strip().split("\n\n") if text]
            assert document.text == "\n\n".join(norwegian)
        assert report.counts["documents_cut"] == 2
        assert report.counts[f"characters_cut_{code}"] == sum(
            len(mixture) - len(document.text) for document in kept
        )
    keep = LanguageConfig(other_parts="keep")
    kept, report = run_shard_stage(
        Language(), [make_document(f"{NOB} {NOB}\n\n{other}")], make_config(language=keep)
    )
    assert [document.text for document in kept] == [f"{NOB} {NOB}\n\n{other}"]


@pytest.mark.parametrize("code", ["pol", "fin", "ukr", "ara", "zho", "tur", "smj"])
def test_two_norwegian_sentences_beside_another_language_are_kept(code: str) -> None:
    norwegian = "Du kan søke hele året. Søknaden sender du på nettet, og du får svar innen tre uker."
    sentence = PARAGRAPHS[code].split(". ")[0]
    for mixture in (
        f"{norwegian}\n\n{sentence}.",
        f"{PARAGRAPHS[code]}\n\n{PARAGRAPHS[code]}\n\n{norwegian}",
    ):
        kept, _ = run_shard_stage(
            Language(),
            [make_document(mixture, claim or "none", language=claim) for claim in ("", "nob")],
            make_config(),
        )
        assert [(document.language, document.text) for document in kept] == [("nob", norwegian)] * 2


def test_paragraphs_stay_separate_where_another_language_was_cut() -> None:
    short = "Ring oss på telefon mandag til fredag."
    for gap in ("\n", "\n\n"):
        kept, _ = run_shard_stage(
            Language(),
            [make_document(gap.join([NOB, PARAGRAPHS["pol"], f"{NOB} {short}", short]))],
            make_config(),
        )
        assert kept[0].text == gap.join([NOB, f"{NOB} {short}", short])


def test_quotations_tables_and_kept_languages_are_not_cut() -> None:
    polish = PARAGRAPHS["pol"]
    first = polish.split(". ")[0]
    quoted = f"{NOB}\n\n«{first}.»\n\n{NOB}\n\nZażółć gęślą jaźń i nie bój się."
    table = "\n".join(f"{n} | Сертификат о среднем образовании | atestat {n} | {n}" for n in range(5))
    for text in (
        quoted,
        f"{NOB}\n\n{table}\n\n{NOB}",
        f"{NOB} {NOB}\n\nPlease read the whole letter before you call us at the office.",
    ):
        kept, report = run_shard_stage(Language(), [make_document(text)], make_config())
        assert [document.text for document in kept] == [text]
        assert not report.counts["documents_cut"]
    kept, report = run_shard_stage(
        Language(),
        [make_document(f"{DAN}\n\n{polish}")],
        make_config(language=LanguageConfig(keep=["nob", "nno", "dan"])),
    )
    assert [document.text for document in kept] == [DAN]
    with pytest.raises(ValueError, match="other_parts is 'drop'"):
        LanguageConfig(other_parts="drop")


def test_a_page_with_only_a_norwegian_heading_is_dropped() -> None:
    kept, report = run_shard_stage(
        Language(),
        [make_document(f"Informasjon til foreldre\n\n{PARAGRAPHS['pol']}\n\n{PARAGRAPHS['pol']}")],
        make_config(),
    )
    assert not kept
    assert report.drop_reasons() == {"language_pol": 1}


def test_a_conversation_is_not_cut() -> None:
    turns = [
        Turn(role="user", content=PARAGRAPHS["pol"], target=False),
        Turn(role="assistant", content=NOB, target=True),
    ]
    kept, _ = run_shard_stage(Language(), [make_document("", turns=turns)], make_config())
    assert [turn.content for turn in kept[0].turns] == [PARAGRAPHS["pol"], NOB]


@pytest.mark.parametrize("case", PLAIN_BOKMAL, ids=lambda case: case.id)
def test_bokmal_made_of_words_shared_with_danish_is_bokmal(case: Case) -> None:
    assert not any(map(is_danish_only, language.words(case.text)))
    for claim in ("", "nob"):
        assert language.judge(case.text).language(claim, LanguageConfig()) == "nob"


def test_modern_and_historical_danish_is_identified_by_its_own_words() -> None:
    danish = ("uge", "noget", "ansøgning", "afgørelse", "myndighed", "højere")
    assert [word for word in danish if not is_danish_only(word)] == []
    norwegian = ["brukt", "hjalp", "dybde", "feigt", "opne", "individ", "affære", "aften"]
    norwegian += ["nødvendige", "vinduet", "væske", "skapet"]
    assert [word for word in norwegian if is_danish_only(word)] == []
    for text in (DAN, FORMER_DANISH):
        assert language.judge(text).language("", LanguageConfig()) == "dan"
        assert language.judge(text).language("nob", LanguageConfig()) == "dan"


@pytest.mark.parametrize("case", NORWEGIAN_OF_NAMES, ids=lambda case: case.id)
def test_names_are_not_evidence_and_the_claim_holds_for_titles_and_lists(case: Case) -> None:
    for claim in ("nob", "nno"):
        kept, _ = run_shard_stage(Language(), [make_document(case.text, language=claim)], make_config())
        assert [document.language for document in kept] == [claim]
        assert kept[0].text == case.text


def test_running_text_overrules_a_claim() -> None:
    for text, code in ((NNO, "nno"), (NOB, "nob"), (DAN, "dan")):
        for claim in ("nob", "nno", "pol", "eng"):
            assert language.judge(text).language(claim, LanguageConfig()) == code


def test_the_claim_holds_where_the_text_has_no_evidence() -> None:
    documents = [
        make_document("Dzień dobry!", "short", language="pol"),
        make_document("Kraków 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38", language="ukr"),
    ]
    kept, report = run_shard_stage(Language(), documents, make_config())
    assert not kept
    assert report.drop_reasons() == {"language_pol": 1, "language_ukr": 1}


def test_names_are_removed_before_scoring() -> None:
    text = (
        "Brev til Universitetet i Oslo, Statens vegvesen og Møre og Romsdal fylkeskommune om "
        "saken. Vi svarer Kari i morgen."
    )
    assert " ".join(remove_names(text).split()) == "Brev til og om saken. Vi svarer i morgen."
    assert remove_codes("les https://a.no/b og id_1 f.eks.\npå linje") == "les og\npå linje"


def test_every_py3langid_code_has_a_name() -> None:
    unknown = {code for code in _all_languages().codes if code not in ISO_639_3}
    assert unknown == {"zxx"}, "no linguistic content"
    assert set(ISO_639_3.values()) <= set(NAMES)


def test_few_gold_sentences_of_the_six_languages_are_misidentified(real_corpora: Path) -> None:
    sentences = [(code, text) for code, text in read_ud_sentences(real_corpora / "ud") if len(text) >= 60]
    texts = [text for _, text in sentences]
    identified = zip(texts, find_other_languages(texts), strict=True)
    others = [text for text, found in identified if found and found.code not in language.CODES.values()]
    assert len(others) <= 0.001 * len(sentences), others


def test_the_benchmark_reads_declarations_and_prints_its_table(tmp_path: Path) -> None:
    (tmp_path / "pol.html").write_text(
        f"<html><body><p>{PARAGRAPHS['pol']}</p><li>Artykuł &amp; 1</li></body>", encoding="utf-8"
    )
    assert read_declarations(tmp_path) == [("pol", PARAGRAPHS["pol"]), ("pol", "Artykuł & 1")]
    assert "| Polish (pol) | 1 | 100% | 100% | pol 1 |" in describe_other_languages(
        [("pol", PARAGRAPHS["pol"])]
    )


NORWEGIAN_PARAGRAPH = (
    "Kommunen har vedtatt at arbeidet starter i vår, og at {} blir stengt i tre måneder. Beboerne "
    "får et brev om dette."
)
OTHER_PARAGRAPHS = [
    (
        "Savivaldybė nusprendė, kad darbai prasidės pavasarį, o gatvė bus uždaryta tris mėnesius. "
        "Gyventojai gaus laišką."
    ),
    "Şaredariyê biryar daye ku kar di biharê de dest pê bike û kolan ji bo sê mehan girtî bimîne.",
    "ናይ ከተማ ምምሕዳር ስራሕ ኣብ ጽድያ ክጅምር ወሲኑ ኣሎ። እቲ መንገዲ ንሰለስተ ወርሒ ተዓጽዩ ክጸንሕ እዩ።",
    "市政府已决定工程将于春季开始，道路将关闭三个月。居民将收到一封信。",
]


@pytest.mark.parametrize("other", OTHER_PARAGRAPHS)
@pytest.mark.parametrize("between", ["\n", "\n\n"])
@pytest.mark.parametrize(
    "short",
    [
        "Vedtaket kan påklages innen tre uker.",
        "## Informasjon på andre språk",
        "Gebyret er 500 kroner.",
    ],
)
def test_short_norwegian_lines_beside_another_language_are_kept(other: str, between: str, short: str) -> None:
    norwegian = [
        NORWEGIAN_PARAGRAPH.format("gata"),
        short,
        short,
        NORWEGIAN_PARAGRAPH.format("veien"),
    ]
    text = between.join([*norwegian[:2], other, *norwegian[2:]])
    kept, report = run_shard_stage(Language(), [make_document(text)], make_config())
    assert [line for line in kept[0].text.split("\n") if line] == norwegian
    num_cut = sum(cut.characters for cut in report.shortened)
    assert len(text) == len(kept[0].text) + num_cut
    assert [cut.text for cut in report.cuts.values()] == [other]


def test_sami_place_names_leave_a_norwegian_sentence_norwegian() -> None:
    text = (
        "Møtet holdes i Guovdageaidnu, og befaringen går til Máze, Láhpoluoppal og Šuoššjávri i "
        "Kautokeino kommune."
    )
    kept, _ = run_shard_stage(Language(), [make_document(text)], make_config())
    assert [d.language for d in kept] == ["nob"]
