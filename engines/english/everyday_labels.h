// The labels that come with blip2rt, edited by hand: "parents: labels with their synonyms".
#pragma once

#include <string_view>

namespace blip2rt {

inline constexpr std::string_view kEverydayLabels = R"(
animal: dog/puppy, cat/kitten, horse/pony/foal/colt, bear, giraffe, elephant, cow/cattle/bull/calf/ox, zebra
animal: sheep/lamb/ram/ewe, herd, mouse/rat, polar bear, goat, flock, rabbit/bunny, deer/elk/moose/antelope
animal: monkey/ape/gorilla/chimpanzee, tiger, panda, camel, pig/piglet/hog, donkey/mule, insect/bug, lion, bison/buffalo
animal: frog/toad, snake, turtle/tortoise, llama/alpaca, squirrel/chipmunk, rhino/rhinoceros, lizard/iguana, wolf
animal: leopard/cheetah, seal/sea lion, spider, fox, kangaroo, bird
animal > bird: chicken/hen/rooster, duck/duckling/mallard, seagull/gull, pigeon, turkey, swan, eagle/hawk/falcon
animal > bird: parrot/parakeet/macaw, ostrich/emu, owl, goose/gosling, pelican, crow/raven, hummingbird, flamingo
animal > bird: penguin, peacock, heron, stork
animal > dog: greyhound, bulldog/pug, labrador/golden retriever, german shepherd, poodle, collie/sheepdog, terrier
animal > dog: dalmatian, chihuahua
animal > insect: butterfly/moth, bee/wasp, ladybug/beetle
animal > sea animal: fish/goldfish, shark, octopus, whale, dolphin, crab, lobster
appliance: refrigerator/fridge, stove, oven, microwave, blender, dryer, toaster, freezer, dishwasher, washing machine
appliance: coffee maker/coffee machine, mixer, sewing machine
building: tower, house, store/shop, restaurant, clock tower, bridge, bar/pub, hotel, school, church, tent, barn, garage
building: tunnel, bank, stadium, museum, hospital, library, cafe, gym, castle, cabin, bakery, skyscraper, hut
building: gas station, supermarket/grocery store, lighthouse, factory, warehouse, mall, apartment building, shed
building: cathedral, office building, temple, palace, cottage, ruins, greenhouse, theater, windmill, fort, mansion
building: pyramid
clothing: shirt, hat, tie/necktie, suit, jacket, glasses/eyeglasses, watch/wristwatch, dress/gown, helmet, uniform
clothing: shorts, shoe, coat, pants/trousers, sunglasses, cap/baseball cap, costume, jeans, glove/mitten, ring, skirt
clothing: sweater, vest, t-shirt, wetsuit, boot, jersey, mask, hoodie/sweatshirt, headphones, scarf
clothing: swimsuit/swim trunks, bikini, necklace, tank top, goggles, flip flops/sandals, bow tie, apron, belt, robe
clothing: tuxedo, heels/high heels, headband, pajamas, sneakers, earrings, socks, jewelry, bracelet, wig, wedding dress
clothing: turban, veil, blouse, kimono
container: box/cardboard box, bag, luggage, suitcase, backpack, handbag/purse, shopping cart, barrel, crate, bin
container: package, plastic bag, cooler, paper bag, shopping bag, briefcase, wallet, dumpster, pouch, sack, bird cage
drink: wine, coffee, beer, soda/coke, milk, juice, tea, orange juice, water bottle, alcohol, milkshake/smoothie
drink: champagne, red wine, cocktail, lemonade
electronics: laptop, computer, telephone/phone, camera, cell phone/cellphone/smartphone/mobile phone, television/tv
electronics: remote/remote control, keyboard, video game, screen, monitor, wire/cable/cord, game controller/wii remote
electronics: microphone, computer mouse, speaker, tablet, printer, cd, alarm clock, video camera, radio, stereo
electronics: projector
event: game, show, wedding, christmas, party, parade, contest/competition, meeting, ceremony, festival, halloween
event: birthday party, protest, celebration, fireworks, performance, concert, sporting event
food: pizza, sandwich, hot dog/hotdog, meat, cheese, bread, french fries/fries, meal, salad, chocolate, dinner, egg
food: sauce, bun, rice, broth/soup, breakfast, slice of pizza, picnic, pasta/spaghetti, hamburger/burger/cheeseburger
food: bean, lunch, pie, cookie, sausage, snack, mustard, butter, bacon, chips, pepperoni, toast, pickle, pancake
food: noodles, ketchup, steak, beef, crust, ham, bagel, peanut butter, olives, waffle, cracker, nut, dip, shrimp
food: stew/curry, cereal, syrup, pork, whipped cream, pita/tortilla, yogurt, sushi, biscuit, honey, sub sandwich, jam
food: seafood, croissant, meatball, burrito, gravy, spices, barbecue, tofu, oatmeal, omelet, taco, fruit, vegetable
food > dessert: cake, donut/doughnut, birthday cake, pastry, frosting/icing, wedding cake, cupcake, ice cream, candy
food > dessert: muffin, sprinkles, cheesecake, ice cream cone, pudding
food > fruit: orange, banana, apple, lemon, strawberry, tomato, pineapple, lime, pear, grapes, berries, watermelon
food > fruit: blueberry, cherry, peach, coconut, avocado, grapefruit, kiwi, tangerine, raspberry, melon/cantaloupe, plum
food > vegetable: broccoli, carrot, onion, mushroom, bell pepper/pepper, lettuce, corn, pumpkin/squash, potato, chili
food > vegetable: spinach, cucumber, green beans, cauliflower, peas, ginger, asparagus, garlic, celery, mashed potatoes
food > vegetable: cabbage, herbs, radish, zucchini, sprouts, parsley, kale, sweet potato, turnip
furniture: table, bed, bench, chair, couch/sofa, desk, counter, cabinet, shelf, dining table, coffee table, stool
furniture: picnic table, bookshelf/bookcase, dresser, chest, cupboard, drawer, mattress, high chair, bunk bed
furniture: crib/cradle, nightstand, footstool/ottoman, headboard, rocking chair, recliner, hammock, bar stool, armchair
furniture: tv stand
home: wall, clock, toilet, window, sink, light, floor, mirror, vase, door, bathtub/tub, shower, stairs/staircase/steps
home: basket, painting, blanket, candle, pillow, toothbrush, towel, tile, lamp, fireplace, curtain, rug
home: frame/picture frame, urinal, fan, ceiling, carpet, doorway, bucket, trash can/garbage can, toilet paper, sheets
home: bedspread/quilt, mat, poster, shower curtain, key, hair dryer, toothpaste, cushion, soap, faucet, chandelier
home: ladder, comb/hairbrush, tablecloth, blinds, ceiling fan, laundry, broom, hanger, wallpaper, medicine cabinet
home: radiator, light bulb, lock, mop, plant pot, sponge, razor
kind of picture: black and white photo, close-up, landscape, advertisement, text, portrait, pattern, collage, old photo
kind of picture: drawing, aerial view, logo, silhouette, cartoon, cityscape, graphic, mosaic, book cover, website
kind of picture: still life, night scene
kitchenware: plate, glass, bowl, bottle, cup, tray, dish, pan/frying pan/skillet, pot, can, knife, fork, pitcher/jug
kitchenware: spoon, wine glass, cutting board, mug, jar, lid, straw, utensils, platter, napkin, coffee cup, wine bottle
kitchenware: silverware/cutlery, chopsticks, kettle, tea kettle/teapot, spatula, baking sheet, ladle
musical instrument: guitar, piano, drum, violin, accordion, flute, bagpipes, trumpet
nature: water, field, snow, beach, mountain, sky, ocean/sea, wave, fire/flames, rock/boulder, hill, dirt, forest/woods
nature: night, river, sand, lake, surf, sun, path, blue sky, shore, rain, ice, pasture, cloud, pond, cliff, sunset
nature: desert, winter, smoke, reflection, cloudy sky, stream, hillside, mud, island, puddle, star, steam, waterfall
nature: rainbow, shadow, bay, jungle, valley, meadow, countryside, moon, sunlight, storm, mountain range, creek, cave
nature: wilderness, fog/mist, autumn, dust, coast, horizon, sunrise, canyon, coral, glacier, savanna
office supplies: book, paper, pen, newspaper, sticker, magazine, notebook, pencil, map, marker, letter
office supplies: chalkboard/blackboard, document, calendar, envelope, folder, postcard
part of a building: fence, brick, railing, brick wall, ledge, gate, roof, deck, patio, wooden floor, balcony, porch
part of a building: window sill, column/pillar, steeple, arch, awning, dome, stained glass, elevator, garage door
part of a building: escalator
part of a vehicle: engine, wheel, oar/paddle, sail, tire, propeller, headlights, steering wheel, windshield, handlebars
part of a vehicle: dashboard, license plate, mast, cockpit
part of an animal: trunk, wing, paw, tail, horns, fur, beak, feathers, tusk, mane
part of the body: hand, back, head, mouth, face, hair, arm, smile, leg, eye, teeth, neck, ear, shoulder, tongue, nose
part of the body: foot, beard, finger, tattoo, lips, mustache, belly, ponytail, toe
person: man/guy/gentleman, people/person, woman/lady, boy, girl, child/kid, couple, group of people, baby/infant/newborn
person: crowd, passenger, family, audience/spectators/onlookers, toddler, elderly person/old man/old woman, pedestrian
person: friends, teenager, tourist
person > athlete: baseball player, skier, tennis player, skateboarder, surfer, snowboarder, rider, batter, cyclist/biker
person > athlete: catcher, football player, soccer player, motorcyclist, basketball player, climber, jockey
person > athlete: runner/jogger, skater, swimmer, wrestler, goalie, baseball pitcher, boxer, gymnast, volleyball player
person > occupation: bride, groom, referee/umpire, chef/cook, police officer/policeman, officer, model, cowboy, hiker
person > occupation: musician/band, student, driver, vendor, soldier, photographer, clown, farmer, guard, athlete, queen
person > occupation: artist/painter, fireman/firefighter, king, dancer, actor, businessman, doctor, lifeguard, fisherman
person > occupation: nurse, pilot, waiter/waitress, singer, sailor, construction worker, monk, teacher, bartender
place: street, road, city, park, sidewalk, swimming pool/pool, runway/tarmac, tennis court, parking lot, airport
place: intersection, enclosure, yard, zoo, dock/pier, market, train station, railroad tracks/train tracks, garden, trail
place: platform, plaza/square, town, subway, lawn, stall, railroad, skate park, baseball field, harbor/marina, cage
place: playground, bus stop, ski slope, farm, highway, pavement, stage, backyard, fair/carnival, crosswalk, skyline
place: courtyard, driveway, neighborhood, resort, alley, soccer field, ski lift, village, rodeo, food truck, bus station
place: boardwalk, amusement park, dugout, construction site, basketball court, race track, bleachers, farmers market
place: parking garage, aquarium, corral, football field, campsite/campground, cemetery, golf course, ice rink, building
place: room
plant: grass, tree, flower, leaf/leaves, branch, bush/shrub, hay, log, flower pot/potted plant, palm tree
plant: christmas tree, bouquet, bamboo, pine tree, weeds, seed, tree trunk, vine, hedge, wheat, wreath, cactus, moss
plant: fern, straw bale/hay bale
plant > flower: rose, tulip, sunflower, lavender, dandelion, daisy, orchid
room: bathroom, kitchen, living room, bedroom, office, dining room, hotel room, restroom, hallway/corridor, classroom
room: lobby, closet, studio, cubicle, cafeteria, conference room, waiting room, basement, nursery, laundry room
sport: tennis, baseball, soccer, skiing, swimming, race, surfing, football, basketball, skateboarding, hockey, skating
sport: snowboarding, fishing, sailing, golf, hiking, volleyball, rock climbing, diving, wrestling, bmx, rugby, motocross
sport: cricket, boxing, polo, parasailing, kayaking, windsurfing, jogging, wakeboarding, bowling, rafting, yoga
sport: sledding, ice skating, marathon, water skiing, karate, frisbee game, cycling, gymnastics, lacrosse
sports equipment: ball, skateboard, frisbee, kite, baseball bat/bat, surfboard, racket/racquet, skis
sports equipment: tennis racket/tennis racquet, tennis ball, ramp, snowboard, soccer ball, net, bow, hurdle
sports equipment: life jacket/life vest, goal, ski poles, baseball glove, fishing rod/fishing pole, rollerblades, saddle
sports equipment: medal, trophy, hockey stick, volleyball net
street furniture: sign, fire hydrant/hydrant, traffic, pole, stop sign, street sign, traffic light, statue
street furniture: parking meter, graffiti, curb, fountain, street light, sculpture, road sign, barrier, billboard, mural
street furniture: power lines, bike rack, lamp post, traffic cone, sign post, umbrella stand
thing: selfie, umbrella/parasol, flag, cross, photograph, brush, trash/garbage, leash, machine, dog collar/collar, pipe
thing: card, cigarette, ribbon, gift/present, bell, diamond, feather, banner, makeup, skull, bird feeder, coin, crown
thing: money, nest, shell, ornament, ticket, cane, mannequin, tripod, lipstick, pacifier, snowman, christmas lights
thing: globe, skeleton, fence post, badge, telescope, lighter, pill, cigar, food
tool: scissors, rope, chain, string, hose, tools, gun, tape, scale, sword, shovel, nail, hammer, needle, wheelbarrow
tool: ruler, axe, hook, thread
toy: teddy bear, toy, swing, stuffed animal, slide, balloon, doll, lego/blocks, trampoline, bubbles, toy car, hula hoop
toy: carousel, ferris wheel, roller coaster, toy train, chess, playing cards, puppet, puzzle
vehicle: car/automobile, bus, bicycle/bike, motorcycle/motorbike, truck, cart, wagon/carriage, double decker bus
vehicle: scooter/moped, van, dirt bike, tank, school bus, trolley/tram/streetcar, sled/sleigh, taxi/cab, trailer
vehicle: fire truck/fire engine, race car, jeep, wheelchair, pickup truck, stroller, atv, tractor, semi truck, tow truck
vehicle: suv, tricycle, garbage truck, ambulance, police car, minivan, convertible, golf cart, forklift, train, boat
vehicle > aircraft: airplane/plane/airliner, jet, fighter jet, parachute, hot air balloon, helicopter, biplane, glider
vehicle > aircraft: rocket
vehicle > boat: ship, canoe, sailboat, raft, kayak, cruise ship, ferry, fishing boat, rowboat, yacht
vehicle > boat: motorboat/speedboat, barge, tugboat
vehicle > train: passenger train, train car, locomotive, subway train, steam engine/steam train, freight train
)";

}  // namespace blip2rt
