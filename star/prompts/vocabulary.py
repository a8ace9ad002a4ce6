"""Classes of words that the rules for free prompts need: closed classes in full, verbs and style
words by frequency."""


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --------------------------------------------------------------------------------------------------

DETERMINERS = word_set(
    "a an the this these those my our your his her its their every each another whose"
)
# What follows a finite verb or a preposition, never a noun: the word before one of these is no noun
# of its own.
ARTICLES = DETERMINERS - {"this", "these", "those", "each", "every"}
PREPOSITIONS = word_set(
    """
    of in on at by to from with without into onto over under above below underneath beneath between behind beside
    besides near next inside outside through throughout across along alongside around about against among amid
    amidst up upon down off out for like unlike per via toward towards past beyond during within atop after before
    until till since despite
    """
)
BE = word_set("is are was were be been being isn't aren't looks seems has have had")
MODALS = word_set("can could will would should may might must shall does do did cannot can't don't")
_OTHER_FUNCTION_WORDS = word_set(
    """
    some any both no none not very so too just only even still more most much many several few various numerous
    multiple countless lots plenty all other others such same own enough almost nearly quite rather also again already
    always never often once soon now then here there where when while whenever wherever why how who whom whose which
    what whoever that than as if because though although unless and or but nor yet either neither i me mine we us ours
    you yours he him she hers it itself himself herself themselves they them theirs one's someone somebody something
    anyone anybody anything everyone everybody everything nobody nothing is are was were be been being am isn't aren't
    it's he's she's that's there's has have had having let away together apart forward forwards backward backwards
    upward upwards downward downwards upside sideways overhead underfoot anywhere everywhere nowhere somewhere outdoors
    indoors nearby aside else ahead far farther further maybe perhaps etc ever
    """
)
FUNCTION_WORDS = DETERMINERS | PREPOSITIONS | MODALS | _OTHER_FUNCTION_WORDS
# What follows them is not in the picture, or stands for a manner or a size.
EXCLUDING = word_set("no not without never nor than like minus")
# Before "like" they make it what is to be drawn.
LIKENESS = word_set("look looks looking looked shaped shape dressed")

# Verbs that are hardly ever nouns in their plain form or with -s, and verbs that often are.
_VERBS = word_set(
    """
    sit hang crawl wait hold throw sell stare lean kneel emerge appear become bring carry catch chase collect contain
    cling dig eat enter erupt explode fill follow gather gaze give glide glow go grow hover keep lay lie lurk observe
    pour prepare pull push put read roam run say scrub see sing sink sleep soar spill stand steer stretch surround swim
    swirl take teach tell tie try twist wander wash wear weave write depict represent reflect illuminate overlook
    scatter grip hide mend melt peek peer plunge repair sew sniff spin stir sway tend tumble want blink flutter balance
    build crouch cuddle dangle dine disappear dissolve feed ignore inspect juggle knit listen offer overgrow relax
    resemble serve shout squeeze stride stumble vanish weep whisper yawn rise drift float belong begin arrive approach
    await adorn admire perform move haggle raise arrange polish bake deliver examine explore nibble paddle pluck
    protect receive reveal rummage scamper scratch shiver slither smash snarl snooze snuggle steal stroke struggle
    tiptoe tremble unfold wag weld wriggle wrestle bounce bathe blow graze gallop greet guard hurry invite
    """
)
VERB_NOUNS = word_set(
    """
    walk run fall jump watch play show dance drink fight ride stop look fly rush march work travel climb roll wave face
    stare point turn balance cover display shine pass sail surf peel skate feature bloom burn kick hug leap splash wrap
    reach rest hunt smile talk trail end start lead leave hit hop lick open ski slide land sprout lift rise drift float
    chat cheer cycle drip nap patrol pose sweep glow push pull twist stretch hide wash stir
    """
)
VERBS = _VERBS - VERB_NOUNS


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


THIRD_PERSON = frozenset(map(_third_person, VERBS))
THIRD_PERSON_NOUNS = frozenset(map(_third_person, VERB_NOUNS))
# Forms without -ed; between a noun and a preposition they are verbs, before a noun adjectives.
PARTICIPLES = word_set(
    """
    made seen held worn torn cut built drawn written hung shown set lit caught grown eaten broken frozen woven
    thrown blown fallen hidden bent stuck spun stood sat left kept taken given laid led spread split swept wound
    bound sewn struck strewn sunk sold spilt told tied carved driven ridden stolen flown beaten bitten overgrown
    known shaped was ran came went fell flew rose saw held drank ate threw wore rode swam
    """
)
# Nouns that end so.
ED_NOUNS = word_set(
    "hundred moped bobsled biped kindred watershed flatbed seabed flowerbed riverbed"
)
# Nouns that look like participles.
ING_NOUNS = word_set(
    """
    building ceiling clothing evening lightning morning painting wedding viking wing string spring swing thing
    earring drawing dressing pudding duckling starling king ring sling sibling sterling herring awning railing icing
    stocking frosting topping lighting setting everything nothing something anything crossing seedling sapling
    gosling dumpling
    """
)
# A verb even where a noun follows, unless an article or a possessive stands before.
TRANSITIVE_ING = word_set(
    """
    wearing holding riding eating sitting standing walking playing looking using making drinking carrying driving
    reading saying chasing wielding facing featuring showing having doing pulling pushing watching depicting
    """
)
# What may follow words to be written that have no quotation marks.
BEHIND_WRITING = word_set("in on at above below with over under near next behind beside")
# At the beginning of a segment or before "by" they speak of the picture.
MAKING = word_set(
    """
    painted rendered shot drawn photographed illustrated filmed captured inspired designed created directed
    """
)
PLURALS = word_set("people men women children mice geese teeth feet sheep fish deer wolves police")
# What may stand right before a finite verb in place of its subject.
SUBJECTS = word_set("who which that and he she it while")

COLORS = word_set(
    """
    red orange yellow green blue purple pink brown black white grey gray golden silver crimson scarlet turquoise
    teal violet beige cyan magenta maroon navy indigo lavender
    """
)
_ADJECTIVES = word_set(
    """
    small big large tall short long little tiny huge giant enormous old young new ancient modern wide narrow deep
    shallow dark bright warm cold hot cool cute quiet loud empty open closed heavy light thin thick fat round square
    flat steep soft hard rough smooth wet dry dirty clean fresh ripe raw sharp blunt strong weak fast slow happy sad
    angry calm lone lonely single double wooden stone metal bare blank grand rich poor wild tame strange odd pale vast
    early late rare beautiful ornate elegant elderly tabby full gold bronze half whole male female low high first
    second third last one two three four five six seven eight nine ten eleven twelve twenty hundred thousand dozen
    """
)
NUMBERS = word_set(
    "two three four five six seven eight nine ten eleven twelve twenty hundred thousand dozen"
)
ADJECTIVES = COLORS | _ADJECTIVES
ADJECTIVE_ENDINGS = ("ful", "ous", "less", "ish", "able", "ible", "esque", "'s", "’s")
# After their noun these are no part of its phrase.
AFTER_NOUN = word_set(
    "full open closed dark bright tall alone high low empty wide asleep awake alive visible ablaze"
)
# Nouns with an adjective's ending, and adjectives and nouns with an adverb's.
ADJECTIVES_NOT = word_set(
    "dish radish polish varnish rubbish table cable stable vegetable constable bible crucible"
)
ADVERBS_NOT = word_set(
    """
    lovely ugly curly woolly silly holy lonely friendly elderly early family butterfly jelly lily fly belly bully
    folly dragonfly firefly ally assembly anomaly homely ghostly deadly lively oily hilly wrinkly prickly bubbly
    cuddly fluffy chilly smelly wobbly sparkly sly july italy wily burly lowly heavenly ghastly monopoly gangly
    scaly squiggly poly low-poly
    """
)

# ------------------------------------------------------------- heads of phrases that name no thing
PLACES = word_set(
    """
    left right top bottom edge middle center centre end ends side sides front back rear background foreground backdrop
    backgrounds 下 上 中 前 横 隣 奥 distance foot midst midground corner kind type sort variety
    """
)
TIMES = word_set(
    """
    night morning evening afternoon dusk dawn midnight noon midday twilight nighttime daytime day hour today time
    moment century daylight
    """
)
TIMES_AFTER_AT = word_set("sunset sunrise spring summer autumn fall winter")
INVISIBLE = word_set("air wind breeze silence music sound smell")
OMITTED = PLACES | TIMES | INVISIBLE | frozenset(["viewer", "word", "words", "text"])

# --------------------------------------------------------------------------------------------------
# Heads of phrases that are never a thing in the picture.
STYLE_HEADS = word_set(
    """
    lighting quality style styles resolution composition aesthetic aesthetics palette palettes mood moods atmosphere
    vibe vibes feeling feel ambiance ambience bokeh contrast focus blur brushwork brushstrokes strokes texture
    textures detail details detailing color colors colour colours tone tones hues shading angle shot shots viewpoint
    perspective realism surrealism impressionism expressionism cubism minimalism photorealism hyperrealism
    photography cinematography render renders wallpaper masterpiece artwork artstation pixiv behance deviantart
    cgsociety trending aberration rendition fiction sci-fi synthwave impasto washes cottagecore poly redshift zbrush
    cinema4d c4d houdini lumion v-ray vray absurdres highres flare vignette symmetry closeup close-up pov
    brushstroke
    """
)
# Style where one ends the first phrase of a segment among style, otherwise things.
MEDIA = word_set(
    """
    painting portrait photo photograph picture image illustration drawing sketch print poster film movie still
    watercolor watercolour watercolors gouache oil acrylic ink charcoal pastel pencil canvas rendering design dof
    woodcut woodblock etching engraving lithograph collage fresco mosaic cgi vfx camera dslr polaroid daguerreotype
    art view lens grain blender body era cover graphic asset assets fantasy cyberpunk steampunk vaporwave anime
    manga cartoon highlights exposure
    """
)
MEDIUM_MODIFIERS = word_set(
    "oil watercolor watercolour digital matte acrylic pencil charcoal ink concept"
)
# A phrase with one of these is style.
STYLE_NAMES = word_set(
    """
    artstation behance cgsociety deviantart pixiv unsplash pinterest unreal octane redshift zbrush houdini lumion
    v-ray vray arri kodak fujifilm leica hasselblad nikon canon sony uhd hdr photorealistic hyperrealistic
    ultrarealistic
    """
)
# A phrase of these alone is style.
STYLE_WORDS = word_set(
    """
    solo full f wide angle vector cute epic dramatic cinematic isometric minimalist minimal minimalistic moody gloomy
    whimsical ethereal surreal abstract realistic photorealistic hyperrealistic ultrarealistic hyper-realistic
    photo-realistic ultra-realistic detailed ultra-detailed hyperdetailed intricate elegant beautiful stunning gorgeous
    award-winning award winning rich best high hd uhd hdr raw sharp vivid vibrant colorful colourful monochrome
    grayscale greyscale sepia pastel retro vintage nostalgic dreamy serene peaceful cozy cosy romantic melancholic
    mysterious eerie creepy spooky dystopian futuristic gothic baroque rococo art-deco noir volumetric atmospheric
    ambient soft hard warm cold muted desaturated saturated highly ultra super extremely hyper very professional
    official symmetrical centered dynamic studio trending low-poly lowpoly highres absurdres anamorphic wide-angle
    black white dark light bright gritty grainy film 3d 2d octane unreal pixar disney ghibli popular featured crisp
    clean simple flat stylized stylised ornate smooth painterly impressionist impressionistic expressionist cubist
    photographic masterful hand-drawn handpainted hand-painted bold-lines fantasy horror rendered shallow backlit
    underexposed overexposed grim grimdark psychedelic kawaii chibi
    """
)

# ------------------------------------------------------------------------------------------------ o
# Words there that are English nouns or verbs as well: no sign of the language.
HOMOGRAPHS = word_set(
    """
    a as de des dice do door hat he i is la le lo los me met no o of on or over par per pod sin son van war
    """
)
# Articles, prepositions, conjunctions, pronouns and a few verbs. The language with the most of them
# is the prompt's.
_LANGUAGES = {
    "de": """ein eine einen einem einer eines der die das den dem des und oder auf in im am an aus bei mit von vom vor
        zu zum zur über unter neben zwischen hinter durch für um ohne nach als wie ist sind war hat haben sein seine
        ihr ihre seinem seiner ihrem ihrer sich nicht kein keine sehr ins entlang gegen während wird steht
        sagt sitzt liegt hängt trägt hält""",
    "fr": """un une le la les l des du de d et ou à au aux sur dans sous avec sans par pour en entre devant derrière
        vers chez près qui que est sont a ont son sa ses leur leurs ce cette ces très plus il elle se ne pas comme
        contre pendant lors autour dit dort marche assis assise""",
    "es": """un una unos unas el la los las de del y e o u en con sin por para sobre bajo entre ante tras desde hacia a
        al su sus que es son está están muy más se lo como junto frente lleva tiene hay corre camina duerme detrás
        dice         sentado sentada""",
    "it": """un uno una il lo la i gli le l di del dello della dei degli delle e o in nel nella nello nei con su sul
        sulla sui sotto sopra tra fra per da dal dalla a al alla che è sono suo sua molto più si come accanto""",
    "pt": """um uma uns umas o a os as de do da dos das e ou em no na nos nas com sem por para sobre sob entre ao à que
        é são está seu sua muito mais se como""",
    "nl": """een de het en of in op aan uit bij met van voor naar over onder naast tussen achter door om zonder als is
        zijn was heeft haar hun die dat niet zeer tegen""",
    "pl": """i w we na z ze nad pod za do od przy przed między przez po o u jest są który która które się bez jak jego
        jej ich obok""",
    "ru": """и в во на с со над под за до от из у к ко по о об при между перед через для без как что который которая
        которые его её их он она они это не около среди возле стоит сидит лежит спит""",
}
LANGUAGES = {name: word_set(text) for name, text in _LANGUAGES.items()}
# Beginnings of style words there.
_STYLE_STEMS = """
    acuarel aquarel acquerell акварел акварель ölgemäld ölmalerei óleo huile масл estilo stil style stijl стил luz
    licht beleuchtung lumière luce luci iluminaci illuminazion éclairag освещен beleucht detail detall dettagl
    détail szczegół детал hochdetaill realist реалист fotoreal qualit calidad качеств kinematogr cinemat kino кинем
    colores couleurs colori farben цвета fondo hintergrund arrière-plan sfondo фон illustra ilustra иллюстр gemälde
    peinture pintura dipinto живопис fotograf photograph фотограф 照明 高画質 高品質 画質 高清 画质 细节 風格 风格 水彩
    油絵 油画 写真 写实 アニメ風 イラスト 光影 背景
"""
STYLE_STEMS = tuple(_STYLE_STEMS.split())
